from __future__ import annotations

import re
from collections import Counter

import pytest

from cedkv import ledger

STRINGS = {name: value for name, value in vars(ledger).items() if name.isupper() and isinstance(value, str)}
METRIC = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)?/?")


def test_no_two_names_in_the_log_are_the_same():
    in_the_log = {
        name: value
        for name, value in STRINGS.items()
        if not name.startswith(("SOURCE_", "PHASE_", "SCHEMA"))
        and name not in {"TRUE", *map(str.upper, ledger.ATOM_TYPES)}
    }
    assert [value for value, times in Counter(in_the_log.values()).items() if times > 1] == []


def test_the_first_plans_names_are_kept():
    kept = (
        *("off_delta_p99_stress", "off_delta_p99_typical", "phase3_loss_on", "phase3_loss_off"),
        *("phase3_loss_str", "lambda_off", "p99_raw", "p99_ema"),
    )
    assert set(kept) <= set(STRINGS.values())
    artifacts = {value.split(".")[0] for value in STRINGS.values() if value.endswith(".json")}
    assert artifacts >= {
        "lambda_off_trace",
        "topk_schedule_trace",
        "loss_curve",
        "phase3_constraint_warn_trace",
        "atom_type_mass",
        "off_stress_top",
    }


def test_metric_names_are_ones_that_every_store_takes():
    metrics = [
        value
        for name, value in STRINGS.items()
        if "." not in value and not name.startswith(("TAG_", "SOURCE"))
    ]
    assert [value for value in metrics if not METRIC.fullmatch(value)] == []


def test_names_are_made_for_known_atom_types_only():
    assert ledger.atom_mass("number") == "atom_mass/number"
    assert ledger.seconds("tick") == "perf/seconds_tick"
    assert ledger.SECONDS_TOTAL not in map(ledger.seconds, ledger.PARTS)
    with pytest.raises(ValueError, match="'verb' is not one of key, value"):
        ledger.atom_mass("verb")
    with pytest.raises(ValueError, match="'lunch' is not one of load, teacher"):
        ledger.seconds("lunch")
