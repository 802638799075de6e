"""The keys and defaults that the plan and the design contract fix, spelled out once more."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from cedkv import ledger
from cedkv.config import Config
from cedkv.config.phase3 import AtomType
from cedkv.release.gates import GATE_A, GATE_B

DEFAULTS = {
    "layer_scope.mixture": "top25",
    "layer_scope.injection": "top25",
    "memory.slots": 8,
    "memory.sink_slots": 0,
    "mix.mode": "v_only",
    "mix.k_anchor.policy": "warm_start_fixed",
    "mix.share": "shared",
    "mix.slot_gate": "none",
    "mix.k_anchor.share": "shared",
    "mix.value_residual": "none",
    "candidate.pool_size": 32,
    "candidate.atom_types": ["key", "value", "content", "number", "function", "delimiter"],
    "candidate.special_tokens": "delimiter_only",
    "candidate.delimiter.mass_cap": 0.15,
    "candidate.delimiter.mass_penalty": 0.05,
    "candidate.delimiter.apply_stage": "post_topk_renorm_per_slot",
    "warm_start.anti_steer_strength": 0.2,
    "loss.lambda_on": 1.0,
    "loss.lambda_off": 2.0,
    "loss.lambda_str": 0.1,
    "loss.source": "hf",
    "loss.off.type": "cvar",
    "loss.off.cvar_tail_fraction": 0.2,
    "loss.off.train_source": "hard_pool",
    "loss.off.constraint_source": "fixed_stress_eval",
    "loss.off.hard_pool_size": 64,
    "train.topk_schedule": [32, 16, 8, 4],
    "train.topk_milestones": [0.0, 0.25, 0.6, 0.85],
    "train.lambda_off.dual.metric_source": "fixed_stress_eval",
    "train.lambda_off.dual.eta": 0.05,
    "train.lambda_off.dual.ema_beta": 0.9,
    "train.lambda_off.dual.update_every": 5,
    "train.lambda_off.dual.lambda_min": 0.0,
    "train.lambda_off.dual.lambda_max": 10.0,
    "train.lambda_off.dual.delta_clip": 0.1,
    "train.constraint_warn.enabled": True,
    "train.constraint_warn.patience_eval_ticks": 3,
    "train.constraint_warn.margin": 0.0,
    "train.constraint_warn.eval_every": 1,
    "train.constraint_warn.action": "warn",
    "thresholds.on_gain_min": 0.02,
    "thresholds.off_delta_p99_max": 0.05,
    "thresholds.delta_on_min": 0.01,
    "thresholds.teacher_min_on_acc": 0.2,
    "thresholds.rel_kl_to_teacher_max": 1.0,
    "thresholds.certified": False,
    "eval.on_samples": 64,
    "eval.off_samples": 256,
    "eval.repro_runs": 2,
    "eval.off_fixed_stress.size": 2048,
    "eval.off_fixed_stress.seed": 3407,
    "eval.off_fixed_stress.sampling": "once_per_experiment",
    "eval.off_fixed_stress.definition": "phase2_stress_compatible",
    "reporting.atom_type_mass": True,
    "milestone.explore.enabled": True,
    "milestone.explore.flag": "phase3_explore",
    "milestone.explore.max_runs": 5,
    "runtime.policy_mode": "prod",
    "runtime.debug_allow_nonfixed_constraint_sources": False,
    "runtime.strict_hf": False,
}


@pytest.mark.parametrize(("key", "default"), DEFAULTS.items())
def test_the_contract_s_key_has_its_default(key: str, default: object) -> None:
    found: Any = Config().phase3.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    assert found == default
    assert type(found) is type(default)


def test_atom_types_are_those_of_the_log() -> None:
    assert get_args(AtomType) == ledger.ATOM_TYPES


def test_thresholds_are_those_the_gates_know() -> None:
    thresholds = Config().phase3.thresholds
    for limit in (*GATE_A, GATE_B):
        if limit.key is not None:
            assert getattr(thresholds, limit.key) == limit.default
