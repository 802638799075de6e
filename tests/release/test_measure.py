from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.release.measure import measure, on_metrics, stress_metrics


def test_the_tables_give_what_numpy_gives(runs):
    rng = np.random.default_rng(0)
    run = runs.run(deltas=rng.exponential(size=2048).tolist())
    for name, item in measure(run).items():
        assert item.problem == "", name
        assert item.value == pytest.approx(run.metrics[name], rel=1e-12)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=500))
def test_p99_is_a_measured_value_with_at_most_one_percent_above(runs, deltas):
    p99 = stress_metrics(runs.stress_rows(deltas))["off_delta_p99_stress"]
    assert p99 in deltas
    assert sum(delta > p99 for delta in deltas) <= 0.01 * len(deltas)


def test_a_teacher_no_better_than_the_base_leaves_nothing_to_recover(runs):
    values = on_metrics(runs.on_rows(base=10, student=10, teacher=10))
    assert math.isnan(values["on_gain_recovered"])
    assert values["on_gain"] == 0.0


def test_an_infinite_log_probability_is_no_gain(runs):
    rows = tuple(replace(row, student_logp=-math.inf, base_logp=-math.inf) for row in runs.on_rows())
    assert math.isnan(on_metrics(rows)["on_logp_gain"])


def test_a_verdict_needs_neither_torch_nor_mlflow():
    code = (
        "import sys, cedkv.release.gates, cedkv.release.milestone, cedkv.release.exit_codes, cedkv.report.text, "
        "cedkv.report.run_page, cedkv.report.run_report, cedkv.ledger\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'plotly', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
