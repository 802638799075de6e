from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cedkv.config import Config, Loaded
from cedkv.config.scope import surely_outside

Read = Callable[..., Loaded]
Make = Callable[..., Config]
Refused = Callable[..., str]

CONSTRAINT = "phase3.loss.off.constraint_source=hard_pool"
DUAL = "phase3.train.lambda_off.dual.metric_source=hard_pool"
TRAIN = "phase3.loss.off.train_source=fixed_stress_eval"
DEBUG = "phase3.runtime.policy_mode=debug"
ALLOW = "phase3.runtime.debug_allow_nonfixed_constraint_sources=true"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {topk_schedule: [8, 4]}", "has 2 stages, topk_milestones has 4; give one milestone per stage"),
        ("train: {topk_schedule: [8, 16, 8, 4]}", "phase3.train.topk_schedule = [8, 16, 8, 4]: grows"),
        ("candidate: {pool_size: 16}", "topk_schedule = [32, 16, 8, 4]: exceeds candidate.pool_size (16)"),
        ("train: {topk_milestones: [0.1, 0.2, 0.3, 0.4]}", "does not start at 0"),
        ("train: {topk_milestones: [0, 0.2, 0.2, 0.4]}", "does not rise strictly"),
        ("train: {lambda_off: {dual: {lambda_min: 11}}}", "lambda_min = 11.0: exceeds lambda_max (10.0)"),
        ("loss: {lambda_off: 12}", "phase3.loss.lambda_off = 12.0: starts outside the dual's range [0.0, 10.0]"),
        ("train: {lambda_off: {dual: {lambda_min: 3}}}", "phase3.loss.lambda_off = 2.0: starts outside"),
        ("loss: {off: {hard_pool_size: 257}}", "hard_pool_size = 257: exceeds eval.off_samples (256)"),
        ("train: {off_batch: 65}", "off_batch = 65: exceeds the 64 prompts of hard_pool"),
        ("candidate: {atom_types: [delimiter]}", "every slot needs a candidate that is no delimiter"),
        ("candidate: {atom_types: [key, key]}", "names a type twice"),
        (
            "mix: {k_anchor: {share: head}}",
            'k_anchor.share = "head": gives each head candidates of its own, which one mixture cannot weigh',
        ),
        ("mix: {share: layer, k_anchor: {share: head}}", "one mixture cannot weigh (mix.share: layer)"),
        ("mix: {k_anchor: {share: layer}}", "set mix.share to layer"),
        ("layer_scope: {mixture: top50}", "mixes layers outside layer_scope.injection (top25)"),
        ("layer_scope: {mixture: all}", "mixes layers outside layer_scope.injection (top25)"),
        ("layer_scope: {mixture: [3, 4], injection: [4, 5]}", "mixes layers outside"),
        (
            "train: {lambda_off: {dual: {setpoint_margin: 0.05}}}",
            "setpoint_margin = 0.05: reaches thresholds.off_delta_p99_max (0.05)",
        ),
        ("train: {lambda_off: {dual: {gain_p: 0.5}}}", "gain_p = 0.5: belongs to controller pi"),
        (
            "runtime: {strict_hf: true}, loss: {source: blend}",
            'phase3.loss.source = "blend": trains on proxies, and runtime.strict_hf wants every number from a real',
        ),
    ],
)  # fmt: skip
def test_a_broken_rule_between_keys_is_refused(refused: Refused, text: str, says: str) -> None:
    assert says in refused(f"phase3: {{{text}}}")


@pytest.mark.parametrize(
    "text",
    [
        "train: {topk_schedule: [32, 32, 4, 4]}",
        "train: {lambda_off: {dual: {lambda_min: 2, lambda_max: 2}}}",
        "loss: {off: {hard_pool_size: 256}}, train: {off_batch: 256}",
        "layer_scope: {mixture: top10, injection: all}",
        "layer_scope: {mixture: [4], injection: [4, 5]}",
        "layer_scope: {mixture: full_attention, injection: top25}",
        "layer_scope: {mixture: [4], injection: top25}",
        "candidate: {delimiter: {mass_cap: 1.0}}",
    ],
)
def test_the_edge_of_each_rule_is_allowed(config: Make, text: str) -> None:
    config(f"phase3: {{{text}}}")


def test_no_configuration_that_breaks_a_rule_can_be_made_in_python() -> None:
    with pytest.raises(ValidationError, match="grows"):
        Config.model_validate({"phase3": {"train": {"topk_schedule": [4, 8, 8, 8]}}})


# ----------------------------------------------------------------------------------- sources (contract, section 4)
@pytest.mark.parametrize(
    ("override", "key"), [(CONSTRAINT, "constraint_source"), (DUAL, "dual.metric_source")]
)
def test_prod_reads_constraints_from_the_fixed_set_only(refused: Refused, override: str, key: str) -> None:
    message = refused("{}", override)
    assert f'{key} = "hard_pool": policy_mode prod reads constraints from fixed_stress_eval only' in message
    assert key in refused("{}", override, ALLOW)


@pytest.mark.parametrize("override", [CONSTRAINT, DUAL])
def test_debug_needs_the_override_as_well(refused: Refused, config: Make, override: str) -> None:
    assert "also needs runtime.debug_allow_nonfixed_constraint_sources: true" in refused(
        "{}", override, DEBUG
    )
    config("{}", override, DEBUG, ALLOW)


def test_training_on_the_fixed_set_is_for_debug(refused: Refused, config: Make) -> None:
    assert "policy_mode prod trains on the hard pool only" in refused("{}", TRAIN)
    assert config("{}", TRAIN, DEBUG).phase3.loss.off.train_source == "fixed_stress_eval"


@pytest.mark.parametrize("source", ["sealed", "proxy"])
def test_the_sealed_set_is_no_source_of_anything(refused: Refused, source: str) -> None:
    for key in ("loss.off.train_source", "loss.off.constraint_source", "train.lambda_off.dual.metric_source"):
        assert "must be 'hard_pool' or 'fixed_stress_eval'" in refused(
            "{}", f"phase3.{key}={source}", DEBUG, ALLOW
        )


@pytest.mark.parametrize("value", ["true", "TRUE", " True ", "1"])
def test_ci_forces_prod_and_says_so(read: Read, value: str) -> None:
    loaded = read("{}", DEBUG, env={"CI": value})
    assert loaded.config.phase3.runtime.policy_mode == "prod"
    assert loaded.notes == ("phase3.runtime.policy_mode: debug was forced to prod because CI is set",)


def test_ci_refuses_what_only_debug_allows(refused: Refused) -> None:
    message = refused("{}", DUAL, DEBUG, ALLOW, env={"CI": "true"})
    assert "policy_mode prod reads constraints" in message
    assert message.endswith("note: phase3.runtime.policy_mode: debug was forced to prod because CI is set")


@pytest.mark.parametrize("env", [{}, {"CI": ""}, {"CI": "false"}, {"CI": "0"}])
def test_outside_ci_debug_stays(read: Read, env: dict[str, str]) -> None:
    loaded = read("{}", DEBUG, env=env)
    assert loaded.config.phase3.runtime.policy_mode == "debug"
    assert loaded.notes == ()


def test_ci_has_nothing_to_say_about_prod(read: Read) -> None:
    assert read("{}", env={"CI": "true"}).notes == ()


# -------------------------------------------------------------------------------------------------------- scopes
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 200))
def test_a_scope_called_outside_is_never_within_on_any_model(
    mixture: int, injection: int, layers: int
) -> None:
    """Last ceil(NN/100 · n) layers: more percent are never fewer layers, so only a wider request can be outside."""
    counts = [-(-share * layers // 100) for share in (mixture, injection)]
    if counts[0] > counts[1]:
        assert surely_outside(f"top{mixture}", f"top{injection}")
    if mixture <= injection:
        assert not surely_outside(f"top{mixture}", f"top{injection}")
