"""Golden trajectories: a change that is not meant to change a computation must not change λ or a loss.

Where a change is meant, write the files again and say why:
`pytest tests/train/test_golden.py --regenerate-golden "the reason"`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")
TOLERANCE = 1e-5

RUNS = {
    "v_only": ("phase3.train.lr=0.2", "phase3.thresholds.off_delta_p99_max=0.06"),
    "kv_per_head": (
        "phase3.train.lr=0.2",
        "phase3.mix.mode=kv",
        "phase3.mix.share=head",
        "phase3.memory.sink_slots=1",
        "phase3.loss.on.type=answer_nll",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_trajectory_is_the_golden_one(train_small, request, name):
    traces = train_small(*RUNS[name]).trainer.traces
    found = {"lambda_off_trace": traces.dual, "loss_curve": traces.loss, "topk_schedule_trace": traces.topk}
    path = GOLDEN / f"{name}.json"
    reason = request.config.getoption("--regenerate-golden")
    if reason is not None:
        _write(path, reason, found)
    golden = json.loads(path.read_text())
    assert golden["reason"].strip()
    for trace, rows in found.items():
        assert len(rows) == len(golden[trace])
        for row, expected in zip(rows, golden[trace], strict=True):
            assert row == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE), trace


def _write(path: Path, reason: str, traces: dict[str, list[dict[str, float]]]) -> None:
    """One row a line, so that a change shows in a diff."""
    parts = [f'"reason": {json.dumps(reason)}', f'"settings": {json.dumps(RUNS[path.stem])}']
    for trace, rows in traces.items():
        parts.append(f'"{trace}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]")
    path.write_text("{\n " + ",\n ".join(parts) + "\n}\n")


def test_a_golden_run_is_no_flat_line():
    """What never moves would guard nothing."""
    for name in RUNS:
        golden = json.loads((GOLDEN / f"{name}.json").read_text())
        for trace, column in (("lambda_off_trace", "lambda_off"), ("loss_curve", "phase3_loss_off")):
            values = [row[column] for row in golden[trace]]
            assert max(values) - min(values) > 100 * TOLERANCE
