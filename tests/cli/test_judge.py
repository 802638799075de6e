"""``cedkv gate`` and ``cedkv report`` on runs of a real tracking store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cedkv import ledger
from cedkv.cli import main
from cedkv.config import yaml12
from cedkv.tracking.ledgers import read_ledgers
from cedkv.tracking.reader import read_run
from cedkv.tracking.record import RunRecord
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter

Log = Callable[..., str]


@pytest.fixture
def log(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Log a run as training does; its id. The store is the one that ``MLFLOW_TRACKING_URI`` names."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)

    def write(record: RunRecord, *, experiment: str = "cedkv", stress: bool = True) -> str:
        config = {**(record.config or {}), "tracking": {"experiment": experiment}}
        with RunWriter(store_uri, experiment, name=record.name, tags=record.tags) as run:
            run.log_metrics(record.metrics, step=1)
            run.log_text(ledger.CONFIG_RESOLVED, yaml12.dump(config))
            run.log_json(ledger.DATA_SPEC, record.data_spec)
            run.log_jsonl(ledger.TABLE_ON, map(asdict, record.on_table or ()))
            if stress:
                run.log_jsonl(ledger.TABLE_STRESS, map(asdict, record.stress_table or ()))
            run.log_json(ledger.TOPK_TRACE, [{"step": 0, "topk": 32}, {"step": 5, "topk": 16}])
        return run.run_id

    return write


def test_the_exit_status_is_the_verdict(log: Log, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    passing = log(runs.run())
    failing = log(runs.run(deltas=[0.06] * 400))
    unknown = log(runs.run(), stress=False)
    for run_id, status, says in ((passing, 0, "pass"), (failing, 10, "fail"), (unknown, 11, "inconclusive")):
        assert main(["gate", run_id]) == status
        out = capsys.readouterr().out
        assert out.startswith(f"run {run_id} ")
        assert f"gates   {says}\n" in out


def test_every_format_has_the_same_verdict(log: Log, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = log(runs.run(deltas=[0.06] * 400))
    printed = {}
    for name in ("table", "json", "markdown", "junit"):
        assert main(["gate", run_id, "--format", name]) == 10
        printed[name] = capsys.readouterr().out
    verdict = json.loads(printed["json"])
    assert (verdict["run_id"], verdict["gate_a"], verdict["gate_b"]) == (run_id, "pass", "fail")
    assert printed["markdown"].startswith("**FAIL** · Gate A pass · Gate B fail")
    assert ET.fromstring(printed["junit"]).attrib["failures"] == "1"  # noqa: S314 - made a moment ago


def test_latest_is_the_run_that_started_last_in_its_experiment(
    log: Log, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log(runs.run())
    last, other = log(runs.run()), log(runs.run(), experiment="other")
    assert main(["gate", "--latest"]) == 0
    assert last in capsys.readouterr().out
    assert main(["gate", "--latest", "--experiment", "other"]) == 0
    assert other in capsys.readouterr().out
    assert main(["gate", "--latest", "--experiment", "absent"]) == 2
    assert "experiment 'absent'" in capsys.readouterr().err


def test_a_run_that_is_not_there(log: Log, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log(runs.run())
    assert main(["gate", "0" * 32]) == 2
    assert f"run {'0' * 32} is not in" in capsys.readouterr().err


def test_the_milestone_is_judged_beside_the_gates(
    log: Log, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = {"phase3_explore": "true"}
    baseline = runs.run(phase="2", deltas=[i * 1.3e-4 for i in range(400)], on=runs.on_rows(student=60))
    log(baseline, experiment="explored")
    run_id = log(runs.run(tags=flag), experiment="explored")
    assert main(["gate", run_id, "--milestone"]) == 0
    assert "explore milestone  pass (flagged run 1 of at most 5)" in capsys.readouterr().out
    for _ in range(4):
        log(runs.run(tags=flag), experiment="explored")
    sixth = log(runs.run(tags=flag, deltas=[0.06] * 400), experiment="explored")
    assert main(["gate", sixth, "--milestone"]) == 12
    assert "explore milestone  budget spent (flagged run 6 of at most 5)" in capsys.readouterr().out
    assert main(["gate", sixth]) == 10


def test_an_experiment_the_run_is_not_in_is_refused(
    log: Log, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log(runs.run(), experiment="other")
    run_id = log(runs.run())
    assert main(["gate", run_id, "--experiment", "other"]) == 2
    assert f"run {run_id} is in experiment 'cedkv', not in 'other'" in capsys.readouterr().err


def test_report(log: Log, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = log(runs.run())
    assert main(["report", run_id]) == 0
    page = capsys.readouterr().out
    assert "## Verdict" in page
    assert run_id in page
    assert main(["report", "--latest", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"]["run_id"] == run_id
    assert [row["topk"] for row in content["topk_schedule"]] == [32, 16]


def test_all_runs_are_judged_a_line_each(log: Log, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = log(runs.run()), log(runs.run(deltas=[0.06] * 400))
    log(runs.run(), experiment="other")
    assert main(["gate", "--all"]) == 10
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [good, bad]
    assert lines[-1] == "2 runs: 1 pass, 1 fail"
    assert main(["gate", "--all", "--format", "json", "--exit-zero"]) == 0
    assert [item["run_id"] for item in json.loads(capsys.readouterr().out)] == [good, bad]
    assert main(["gate", "--all", "--experiment", "other"]) == 0


def test_exit_zero_and_dry_run(
    log: Log, runs: Any, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = log(runs.run(deltas=[0.06] * 400))
    before = read_run(run_id, store_uri)
    assert main(["gate", run_id, "--dry-run"]) == 10
    assert read_run(run_id, store_uri) == before
    assert main(["gate", run_id, "--exit-zero"]) == 0
    assert "Gate B  fail" in capsys.readouterr().out
    assert read_run(run_id, store_uri).tags["cedkv.verdict"] == "fail"


def test_a_dry_run_enters_nothing_in_the_ledger(log: Log, runs: Any, store_uri: str) -> None:
    run_id = log(runs.run(tags={"phase3_explore": "true"}))
    experiment = read_run(run_id, store_uri).experiment_id
    main(["gate", run_id, "--dry-run"])
    assert read_ledgers(experiment, store_uri).explored == {}
    main(["gate", run_id])
    assert list(read_ledgers(experiment, store_uri).explored) == [run_id]


def test_a_deleted_run_is_judged_but_not_written_to(
    log: Log, runs: Any, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = log(runs.run())
    open_client(store_uri).delete_run(run_id)
    assert main(["gate", run_id]) == 11
    out, err = capsys.readouterr()
    assert "the run was deleted; restore it to judge it" in out
    assert err == (
        f"cedkv: note: run {run_id} was deleted: the verdict is not written back; restore the run for that\n"
    )


def test_a_note_of_the_runs_owner_survives_the_verdict(log: Log, runs: Any, store_uri: str) -> None:
    run_id = log(runs.run())
    open_client(store_uri).set_tag(run_id, "mlflow.note.content", "Look at slot 3.")
    main(["gate", run_id])
    main(["gate", run_id])
    description = read_run(run_id, store_uri).tags["mlflow.note.content"]
    assert description.endswith("Look at slot 3.")
    assert description.count("**PASS**") == 1
