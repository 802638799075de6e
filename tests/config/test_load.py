from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cedkv.config import (
    Config,
    GeneratedData,
    JsonlData,
    Loaded,
    config_hash,
    dump_yaml,
    json_schema,
    load,
    load_config,
    yaml12,
)
from cedkv.core.errors import UserError

Read = Callable[..., Loaded]
Make = Callable[..., Config]
Refused = Callable[..., str]


def test_an_empty_mapping_is_the_default_configuration(config: Make) -> None:
    assert config("{}").phase3 == Config().phase3


def test_a_configuration_is_frozen(config: Make) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config("{}").phase3.train.steps = 3  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ refused values
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("phase3: {train: {stepz: 3}}", "phase3.train.stepz: unknown key; did you mean phase3.train.steps?"),
        ("phase3: {steps: 3}", "phase3.steps: unknown key; did you mean phase3.train.steps?"),
        ("phase_3: {}", "phase_3: unknown key; did you mean phase3?"),
        ("phase3: {memory: {zzz: 1}}", "phase3.memory.zzz: unknown key; known here: slots, sink_slots"),
        ("phase3: {train: {steps: 1.0}}", "phase3.train.steps = 1.0: must be a whole number; the default is 200"),
        ("phase3: {train: {steps: true}}", "phase3.train.steps = true: must be a whole number"),
        ("phase3: {train: {steps: '3'}}", 'phase3.train.steps = "3": must be a whole number'),
        ("phase3: {train: {steps: 0}}", "phase3.train.steps = 0: must be ≥ 1"),
        ("phase3: {train: {lr: fast}}", 'phase3.train.lr = "fast": must be a number; the default is 0.05'),
        ("phase3: {train: {lr: 0}}", "phase3.train.lr = 0: must be > 0"),
        ("phase3: {train: {lr: .inf}}", "phase3.train.lr = Infinity: must be a finite number"),
        ("phase3: {train: {lr: .nan}}", "phase3.train.lr = NaN: must be a finite number"),
        ("phase3: {train: {lr: }}", "phase3.train.lr = null: must be a number"),
        ("phase3: {thresholds: {certified: yes}}", 'phase3.thresholds.certified = "yes": must be true or false'),
        ("phase3: {thresholds: {certified: 1}}", "phase3.thresholds.certified = 1: must be true or false"),
        ("phase3: {thresholds: {on_gain_min: 1.5}}", "phase3.thresholds.on_gain_min = 1.5: must be ≤ 1"),
        ("phase3: {mix: {mode: v-only}}", "phase3.mix.mode = \"v-only\": must be 'v_only', 'kv' or 'anchor'"),
        ("phase3: {mix: {k_anchor: {policy: learned}}}", "phase3.mix.k_anchor.policy"),
        ("phase3: {candidate: {delimiter: {mass_cap: 0}}}", "phase3.candidate.delimiter.mass_cap = 0: must be > 0"),
        ("phase3: {candidate: {delimiter: {mass_cap: 1.01}}}", "must be ≤ 1"),
        ("phase3: {candidate: {delimiter: {apply_stage: pre_topk}}}", "'post_topk_renorm_per_slot'"),
        ("phase3: {candidate: {atom_types: [key, verb]}}", 'phase3.candidate.atom_types[1] = "verb": must be'),
        ("phase3: {candidate: {atom_types: []}}", "must have at least 1 item(s)"),
        ("phase3: {train: {topk_schedule: 4}}", "phase3.train.topk_schedule = 4: must be a list"),
        ("phase3: {train: {topk_milestones: [0, 1, 2, 3]}}", "phase3.train.topk_milestones[1] = 1: must be < 1"),
        ("phase3: {train: {lambda_off: {dual: {ema_beta: 1.0}}}}", "ema_beta = 1.0: must be < 1"),
        ("phase3: {loss: {off: {cvar_tail_fraction: 0}}}", "cvar_tail_fraction = 0: must be > 0"),
        ("phase3: {eval: {off_fixed_stress: {sampling: every_run}}}", "'once_per_experiment'"),
        ("phase3: {eval: {off_fixed_stress: {definition: other}}}", "'phase2_stress_compatible'"),
        ("phase3: {eval: {near_miss_share: 0.1}}", "near_miss_share = 0.1: must be ≥ 0.25"),
        ("phase3: {eval: {repro_runs: 1}}", "repro_runs = 1: must be ≥ 2"),
        ("phase3: {milestone: {explore: {flag: 'a b'}}}", "must match ^[a-z][a-z0-9_]*$"),
        ("phase3: {memory: 7}", "phase3.memory = 7: is a group of keys (slots, sink_slots)"),
        ("phase3:", "phase3 = null: is a group of keys (layer_scope, memory, "),
        ("phase3: {layer_scope: {mixture: top0}}", 'mixture = "top0": is not a layer scope; give all, full_attention'),
        ("phase3: {layer_scope: {mixture: top101}}", "is not a layer scope"),
        ("phase3: {layer_scope: {mixture: []}}", "is not a layer scope"),
        ("phase3: {layer_scope: {mixture: [1, 1]}}", "names a layer twice"),
        ("phase3: {layer_scope: {mixture: [-1]}}", "holds something that is no layer number"),
        ("phase3: {layer_scope: {mixture: [true]}}", "holds something that is no layer number"),
        ("model: {name_or_path: ''}", 'model.name_or_path = "": must not be empty; the default is "embedded"'),
        ("model: {name_or_path: 5}", "must be text"),
        ('tracking: {experiment: "\\ud800"}', "must be Unicode text, without lone surrogates"),
        ("model: {dtype: fp16}", "'float32', 'bfloat16' or 'float16'"),
        ("data: {source: csv}", "data.source = \"csv\": must be one of 'generated', 'jsonl'"),
        ("data: {source: null}", "data.source = null: must be one of"),
        ("data: {documents: x.jsonl}", "data.documents: does not go with the chosen data.source"),
        ("data: {source: jsonl, documents: a, on: b}", "data.off: is missing; add it: jsonl: file of OFF prompts"),
        ("data: {facts_per_document: 25}", "data.facts_per_document = 25: must be ≤ 24"),
        ("data: {seed: -1}", "data.seed = -1: must be ≥ 0"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_key_value_and_rule(refused: Refused, text: str, says: str) -> None:
    assert says in refused(text)


def test_all_problems_are_listed_at_once(refused: Refused) -> None:
    message = refused("phase3: {train: {steps: x, lr: -1}, memory: {slotz: 3}}\ndata: {source: csv}")
    head, *lines = message.splitlines()
    assert head.endswith("run.yaml has 4 problems:")
    assert [line.split()[1] for line in lines] == [
        "data.source",
        "phase3.memory.slotz:",
        "phase3.train.steps",
        "phase3.train.lr",
    ]


def test_a_list_with_a_bad_item_is_not_called_too_short_as_well(refused: Refused) -> None:
    assert "problems" not in refused("phase3: {train: {topk_schedule: [x], topk_milestones: [0]}}")


# --------------------------------------------------------------------------------------------------------- --set
def test_overrides_win_and_follow_the_rules_of_the_file(config: Make) -> None:
    made = config(
        "phase3: {train: {steps: 5}}",
        "phase3.train.steps=7",
        "phase3.train.lr=1e-3",
        "phase3.train.topk_schedule=[8, 4]",
        "phase3.train.topk_milestones=[0, 0.5]",
        "tracking.experiment=on",
        "tracking.run_name=a=b",
        "phase3.train.steps=9",
    )
    assert (made.phase3.train.steps, made.phase3.train.lr) == (9, 0.001)
    assert made.phase3.train.topk_schedule == (8, 4)
    assert (made.tracking.experiment, made.tracking.run_name) == ("on", "a=b")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("phase3.train.steps", "is not key.path=value"),
        ("=5", "is not key.path=value"),
        ("phase3..steps=5", "is not key.path=value"),
        ("phase3.train.stepz=5", "phase3.train.stepz: unknown key; did you mean phase3.train.steps?"),
        ("phase3.train.steps.x=5", 'phase3.train.steps = {"x": 5}: must be a whole number'),
        ("phase3.train.steps=[", "--set phase3.train.steps, line 1, column 2: cannot be read"),
        ("phase3.train.steps=!!int 5", "tags are not allowed"),
        ("phase3.train.steps=", "phase3.train.steps = null: must be a whole number"),
    ],
)
def test_a_bad_override_is_refused(refused: Refused, override: str, says: str) -> None:
    assert says in refused("{}", override)


def test_an_override_below_a_value_is_refused(refused: Refused) -> None:
    assert "data holds 3, no group of keys" in refused("data: 3", "data.seed=4")


# -------------------------------------------------------------------------------------------------------- cvar_q
def test_cvar_q_is_converted_with_a_note(read: Read) -> None:
    loaded = read("phase3: {loss: {off: {cvar_q: 0.8}}}")
    assert loaded.config.phase3.loss.off.cvar_tail_fraction == 0.2
    assert loaded.notes == (
        "phase3.loss.off.cvar_q is deprecated; 0.8 was read as cvar_tail_fraction: 0.2, write that instead",
    )


def test_cvar_q_beside_its_successor_is_refused(refused: Refused) -> None:
    message = refused("phase3: {loss: {off: {cvar_q: 0.8, cvar_tail_fraction: 0.2}}}")
    assert "phase3.loss.off.cvar_q: stands beside cvar_tail_fraction" in message
    assert "cvar_q" in refused(
        "phase3: {loss: {off: {cvar_tail_fraction: 0.2}}}", "phase3.loss.off.cvar_q=0.8"
    )


@pytest.mark.parametrize("value", ["1.0", "-0.1", "high", "true", ".nan", "null"])
def test_an_impossible_cvar_q_is_refused(refused: Refused, value: str) -> None:
    assert "must be a number ≥ 0 and < 1" in refused(f"phase3: {{loss: {{off: {{cvar_q: {value}}}}}}}")


def test_load_config_warns_where_load_notes(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("phase3: {loss: {off: {cvar_q: 0.8}}}")
    with pytest.warns(UserWarning, match="cvar_q is deprecated"):
        load_config(path, env={})
    path.write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(path, env={})


# ----------------------------------------------------------------------------------------- phases, flags, paths
def test_phase_2_is_the_anchor_assembly(config: Make, refused: Refused) -> None:
    assert config("{}", phase=2).phase3.mix.mode == "anchor"
    assert config_hash(config("{}", phase=2)) != config_hash(config("{}", phase=3))
    assert "trains nothing, which is Phase 2" in refused("phase3: {mix: {mode: anchor}}", phase=3)
    assert "phase 4 does not exist" in refused("{}", phase=4)


def test_a_bad_mix_mode_is_reported_in_phase_2_as_well(refused: Refused) -> None:
    assert "phase3.mix.mode" in refused("phase3: {mix: {mode: nonsense}}", phase=2)


def test_strict_hf_flag(config: Make, refused: Refused) -> None:
    assert config("{}", strict_hf=True).phase3.runtime.strict_hf is True
    assert config("phase3: {runtime: {strict_hf: true}}").phase3.runtime.strict_hf is True
    assert "strict_hf" in refused("phase3: {runtime: {strict_hf: 5}}", strict_hf=True)
    assert "phase3.runtime = 5" in refused("phase3: {runtime: 5}", strict_hf=True)


def test_hard_pool_refresh_follows_the_dual(config: Make) -> None:
    assert config("{}").phase3.train.hard_pool_refresh == 5
    assert (
        config("phase3: {train: {lambda_off: {dual: {update_every: 7}}}}").phase3.train.hard_pool_refresh == 7
    )
    assert config("phase3: {train: {hard_pool_refresh: 2}}").phase3.train.hard_pool_refresh == 2


def test_atom_types_all(config: Make) -> None:
    assert config("phase3: {candidate: {atom_types: all}}") == config("{}")
    assert config("phase3: {candidate: {atom_types: [value, delimiter]}}").phase3.candidate.atom_types == (
        "value",
        "delimiter",
    )


def test_paths_start_at_the_file(config: Make, tmp_path: Path) -> None:
    jsonl = "data: {source: jsonl, documents: a/docs.jsonl, on: /data/on.jsonl, off: ../off.jsonl}"
    made = config(f"{jsonl}\nmodel: {{name_or_path: ./model}}")
    assert isinstance(made.data, JsonlData)
    assert made.path(made.data.documents) == tmp_path / "a" / "docs.jsonl"
    assert made.path(made.data.on) == Path("/data/on.jsonl")
    assert made.path(made.data.off) == tmp_path.parent / "off.jsonl"
    assert made.model_source == str(tmp_path / "model")
    assert config("base_dir: sub\nmodel: {name_or_path: ../model}").model_source == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["embedded", "gpt2", "org/model"])
def test_a_hub_name_is_no_path(config: Make, name: str) -> None:
    assert config("{}", f"model.name_or_path={name}").model_source == name


def test_the_data_source_chooses_the_keys(config: Make) -> None:
    assert isinstance(config("data: {facts_per_document: 3}").data, GeneratedData)
    assert isinstance(config("data: {source: jsonl, documents: a, on: b, off: c}").data, JsonlData)


# ------------------------------------------------------------------------------------------------- dump and hash
HUNDREDTHS = st.integers(1, 100).map(lambda n: n / 100)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "phase3.train.steps": st.integers(1, 10**6),
        "phase3.train.lr": st.floats(1e-12, 1e3),
        "phase3.loss.off.cvar_tail_fraction": HUNDREDTHS,
        "phase3.layer_scope.injection": st.sampled_from(
            ["all", "full_attention", "top25", "top100", [0, 3], [6]]
        ),
        "phase3.candidate.atom_types": st.sampled_from(["all", ["value"], ["key", "delimiter"]]),
        "tracking.experiment": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        "data.document_separator": st.text(st.characters(codec="utf-8"), max_size=4),
        "data.repeat_bos": st.booleans(),
    },
)


@settings(max_examples=30)
@given(OVERRIDES, st.sampled_from([2, 3]))
def test_a_dump_reads_back_equal_with_the_same_hash(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, object], phase: int
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    written = folder / "run.yaml"
    written.write_text("{}")
    flags = [f"{key}={yaml12.dump(value)}" for key, value in overrides.items()]
    first = load(written, flags, phase=phase, env={}).config
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    dumped = elsewhere / "resolved.yaml"
    dumped.write_text(dump_yaml(first), encoding="utf-8")
    second = load(dumped, phase=phase, env={})
    assert second.config == first
    assert second.notes == ()
    assert config_hash(second.config) == config_hash(first)
    assert dump_yaml(second.config) == dump_yaml(first)


def test_the_hash_depends_on_settings_and_not_on_spelling_or_place(config: Make) -> None:
    base = config_hash(config("phase3: {train: {steps: 5, lr: 1}}"))
    same = (
        "tracking: {experiment: x}\nbase_dir: /elsewhere\nphase3:\n  train:\n    lr: 1.0\n    'steps': 0x5\n"
    )
    assert config_hash(config(same)) == base
    assert config_hash(config("phase3: {train: {steps: 6, lr: 1}}")) != base
    assert config_hash(config("phase3: {train: {steps: 5, lr: 1}}\nmodel: {name_or_path: gpt2}")) != base
    assert len(base) == 64


def test_the_schema_describes_what_is_accepted() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    train = schema["$defs"]["Train"]["properties"]
    assert train["steps"] == {
        "default": 200,
        "description": "optimiser steps",
        "minimum": 1,
        "title": "Steps",
        "type": "integer",
    }
    assert train["topk_schedule"]["items"] == {"minimum": 1, "type": "integer"}
    json.dumps(schema, allow_nan=False)


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cedkv.config import load; load('configs/base.yaml', env={});"
        "print([m for m in ('torch', 'transformers', 'mlflow', 'numpy', 'accelerate') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_user_errors_are_value_errors() -> None:
    assert issubclass(UserError, ValueError)
