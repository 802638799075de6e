"""Golden trajectories: a change that is not meant to change a computation must not change λ or a loss.

Where a change is meant, write the files again and say why:
`pytest tests/train/test_golden.py --regenerate-golden "the reason"`. The text of these runs lies in golden/, too, so
that a change of the generated world moves none of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cedkv.config import load
from cedkv.train.experiment import prepare
from cedkv.train.loop import Trainer
from tests.small_runs import SMALL, Recorder, random_model

GOLDEN = Path(__file__).with_name("golden")
TEXTS = ("documents", "on", "off")
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
    "gated_pi_blend": (
        "phase3.train.lr=0.2",
        "phase3.mix.slot_gate=affine",
        "phase3.loss.source=blend",
        "phase3.loss.off.prerank=2",
        "phase3.train.lambda_off.dual.controller=pi",
        "phase3.train.lambda_off.dual.eta=0.2",
    ),
}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory) -> Path:
    """A configuration over the frozen text, and a random model that knows its words."""
    folder = tmp_path_factory.mktemp("golden")
    rows = [
        json.loads(line) for name in TEXTS for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()
    ]
    words = (row.get("text", row.get("prompt", "")) + row.get("answer", "") for row in rows)
    random_model(folder / "model", words)
    files = "".join(f"  {name}: {GOLDEN / name}.jsonl\n" for name in TEXTS)
    path = folder / "golden.yaml"
    path.write_text(f"model:\n  name_or_path: ./model\ndata:\n  source: jsonl\n{files}")
    return path


def traces_of(configuration: Path, name: str) -> dict[str, list[dict[str, float]]]:
    sizes = [setting for setting in SMALL if not setting.startswith("data=")]
    config = load(configuration, (*sizes, *RUNS[name]), env={}).config
    trainer = Trainer(prepare(config, 3), Recorder(), warn=lambda _: None)
    trainer.run()
    traces = trainer.traces
    return {"lambda_off_trace": traces.dual, "loss_curve": traces.loss, "topk_schedule_trace": traces.topk}


@pytest.mark.parametrize("name", RUNS)
def test_the_trajectory_is_the_golden_one(configuration, request, name):
    found = traces_of(configuration, name)
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
