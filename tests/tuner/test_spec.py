"""Search spaces: what is shipped fits what is shipped, and every mistake is one sentence with its place and remedy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cedkv.config import load
from cedkv.core.errors import UserError
from cedkv.tuner.spec import Bound, Range, check_space, limit_of, read_spec

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / "configs" / "tune").glob("*.yaml"))
VALID = """
space:
  phase3.train.lambda_off.dual.eta: {low: 0.01, high: 1.0, log: true}
objective: {dual/lambda_std: 1.0}
"""


def resolved(file: Path, changes):
    return load(file, [f"{key}={value}" for key, value in changes.items()], env={}).config


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "space.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("space", SPACES, ids=lambda file: file.stem)
@pytest.mark.parametrize("config", ["smoke", "mid", "mid_gated", "base"])
def test_every_shipped_space_starts_from_every_shipped_scale(space, config):
    file = ROOT / "configs" / f"{config}.yaml"
    spec = read_spec(space)
    current = check_space(spec, resolved(file, {}), partial(resolved, file))
    assert set(current) == set(spec.space)


def test_the_space_of_the_dual_searches_what_the_plan_names():
    keys = {key.rpartition(".")[2] for key in read_spec(ROOT / "configs/tune/dual.yaml").space}
    assert keys == {"eta", "ema_beta", "update_every", "delta_clip", "lambda_max"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("low: 0.01, high: 1.0, log: true", "low: 2, high: 1"), "low 2.0 and high 1.0 make no range"),
        (("low: 0.01, high: 1.0, log: true", "low: 0, high: 1, log: true"), "a logarithm needs low > 0"),
        (("low: 0.01, high: 1.0, log: true", "low: 0.5"), "make no range; give low < high"),
        (("low: 0.01, high: 1.0, log: true", "low: 0.1, choices: [1, 2]"), "give low and high, or choices"),
        (("low: 0.01, high: 1.0, log: true", "choices: [1, 1]"), "stands here twice"),
        (("low: 0.01, high: 1.0, log: true", "low: 0.5, high: 2, whole: true"), "must be whole"),
        (("low: 0.01, high: 1.0, log: true", "low: 0.01, high: 1.0, lgo: true"), "unknown key"),
        (("dual/lambda_std: 1.0", "dual/lambda_sdt: 1.0"), "'dual/lambda_sdt' is no metric"),
        (("dual/lambda_std: 1.0", "dual/lambda_std: -1.0"), "must be ≥ 0"),
        (("objective: {dual/lambda_std: 1.0}", ""), "objective: is missing"),
        (("phase3.train", "Phase3.train"), "must match"),
    ],
)
def test_a_mistake_in_a_space_is_told_with_place_and_rule(written, change, told):
    with pytest.raises(UserError, match=r"space\.yaml") as caught:
        read_spec(written(VALID.replace(*change)))
    assert told in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (VALID.replace("dual.eta", "dual.eat"), "the configuration has no such key"),
        (VALID.replace("phase3.train.lambda_off.dual.eta", "phase3.train.lambda_off"), "no such key"),
        (VALID.replace("low: 0.01", "low: 0.1"), "current value 0.05 lies outside"),
        (VALID.replace("dual.eta: {low: 0.01, high: 1.0", "dual.ema_beta: {low: 0.5, high: 1.5"), "1.5"),
        (
            VALID + "constraints: {on_gain: {most: phase3.thresholds.nothing}}",
            "is no key of the configuration",
        ),
        (VALID + "constraints: {on_gain: {most: phase3.mix.mode}}", "holds a number"),
    ],
)
def test_a_space_that_does_not_fit_the_configuration_is_refused(written, text, told):
    file = ROOT / "configs/smoke.yaml"
    spec = read_spec(written(text))
    with pytest.raises(UserError) as caught:
        check_space(spec, resolved(file, {}), partial(resolved, file))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "phase3.thresholds.off_delta_p99_max",
        "phase3.eval.off_fixed_stress.size",
        "phase3.certification.delta",
        "phase3.train.seed",
        "data.seed",
        "model.dtype",
        "tracking.experiment",
    ],
)
def test_what_trials_are_held_to_is_never_searched(written, key):
    """Else the best trial would be the one with the loosest gate."""
    file = ROOT / "configs/smoke.yaml"
    spec = read_spec(written(VALID.replace("phase3.train.lambda_off.dual.eta", key)))
    with pytest.raises(UserError, match="the same for all of them; search keys of phase3"):
        check_space(spec, resolved(file, {}), partial(resolved, file))


def test_an_end_that_needs_another_searched_key_is_no_mistake():
    """`lambda_max` under the start of λ_off is refused by a rule on λ_off: another value of that one may suit it."""
    spec = read_spec(ROOT / "configs/tune/dual.yaml")
    file = ROOT / "configs/mid.yaml"  # λ_off starts at 2, lambda_max is searched from 0.5
    with pytest.raises(UserError, match=r"phase3\.loss\.lambda_off"):
        resolved(file, {"phase3.train.lambda_off.dual.lambda_max": 0.5})
    check_space(spec, resolved(file, {}), partial(resolved, file))


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (Range(low=1.0, high=2.0), [1, 2.0, 1.5], [0.9, True, "1", None]),
        (Range(choices=(4, "all", None)), [4, "all", None], [4.0, 5, "none", True]),
    ],
)
def test_a_range_holds_numbers_between_its_ends_and_choices_of_the_same_type(allowed, inside, outside):
    assert all(map(allowed.holds, inside))
    assert not any(map(allowed.holds, outside))


def test_a_limit_may_be_a_key_of_the_configuration():
    config = {"phase3": {"thresholds": {"off_delta_p99_max": 0.05}}}
    assert limit_of(Bound(most="phase3.thresholds.off_delta_p99_max"), "m", config) == 0.05
    assert limit_of(Bound(drop=0.01), "m", config) == 0.01


def test_the_page_on_spaces_names_every_key():
    page = (ROOT / "configs/tune/README.md").read_text()
    from cedkv.tuner.spec import MEASURES, Pruning, Spec

    for model in (Spec, Range, Bound, Pruning):
        for name, field in model.model_fields.items():
            assert f"`{name}`" in page
            assert field.description
            assert field.description in " ".join(page.split()), name
    assert all(f"`{metric}`" in page for metric in MEASURES)
