from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking import api_read, fast_read
from cedkv.tracking.reader import latest_run, list_runs, metric_history, read_run, read_runs, read_traces
from cedkv.tracking.record import OnRow, StressRow
from cedkv.tracking.sqlite import local_artifacts
from cedkv.tracking.store import database_path, open_client
from cedkv.tracking.writer import RunWriter


def test_a_run_is_read_with_all_its_artifacts(
    store_uri: str, stress_row: dict[str, Any], on_row: dict[str, Any]
) -> None:
    with RunWriter(store_uri, "exp") as run:
        run.log_text(ledger.CONFIG_RESOLVED, "phase3:\n  loss: {on: 1.0, off: off}\n")
        run.log_json(ledger.DATA_SPEC, {"schema": 1, "stress": {"size": 1}})
        run.log_jsonl(ledger.TABLE_STRESS, [stress_row])
        run.log_jsonl(ledger.TABLE_ON, [on_row, on_row])
    record = read_run(run.run_id, store_uri)
    assert record.problems == ()
    assert record.config == {"phase3": {"loss": {"on": 1.0, "off": "off"}}}
    assert record.data_spec == {"schema": 1, "stress": {"size": 1}}
    assert record.stress_table == (StressRow(**stress_row),)
    assert record.on_table == (OnRow(**on_row),) * 2


def test_what_was_never_logged_is_none_without_a_problem(store_uri: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        pass
    record = read_run(run.run_id, store_uri)
    assert (record.config, record.data_spec, record.stress_table, record.on_table) == (None,) * 4
    assert record.problems == ()


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _not_utf8(file: Path) -> None:
    file.write_bytes(b"\xff\xfe" + file.read_bytes())


def _a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _huge(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(65 * 1024 * 1024)


@pytest.mark.parametrize("damage", [_truncated, _not_utf8, _a_folder, _huge])
@pytest.mark.parametrize("artifact", [ledger.DATA_SPEC, ledger.TABLE_ON])
def test_a_damaged_artifact_is_a_problem_and_not_an_exception(
    store_uri: str, on_row: dict[str, Any], artifact: str, damage: Callable[[Path], None]
) -> None:
    with RunWriter(store_uri, "exp") as run:
        run.log_json(ledger.DATA_SPEC, {"schema": 1, "stress": {"size": 2048}})
        run.log_jsonl(ledger.TABLE_ON, [on_row])
    folder = local_artifacts(
        database_path(store_uri), open_client(store_uri).get_run(run.run_id).info.artifact_uri
    )
    assert folder is not None
    damage(folder / artifact)
    record = read_run(run.run_id, store_uri)
    (problem,) = record.problems
    assert problem.startswith(f"{artifact}: ")
    damaged, intact = ("data_spec", "on_table") if artifact == ledger.DATA_SPEC else ("on_table", "data_spec")
    assert getattr(record, damaged) is None
    assert getattr(record, intact) is not None


def test_traces_are_read_by_artifact_and_a_broken_one_is_left_out_with_a_warning(
    store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RunWriter(store_uri, "exp") as run:
        run.log_json(ledger.LAMBDA_TRACE, [{"step": 5, "lambda_off": 2.0, "p99_raw": math.nan}])
        run.log_json(ledger.LOSS_CURVE, {"not": "a list"})
    assert read_traces(run.run_id, store_uri) == {
        ledger.LAMBDA_TRACE: [{"step": 5, "lambda_off": 2.0, "p99_raw": None}]
    }
    (warning,) = caplog.messages
    assert f"{run.run_id}: {ledger.LOSS_CURVE}: holds dict" in warning


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch pwned']", "a: 1\na: 2", "- 1"])
def test_a_hostile_configuration_is_a_problem(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunWriter(store_uri, "exp") as run:
        run.log_text(ledger.CONFIG_RESOLVED, text)
    record = read_run(run.run_id, store_uri)
    assert record.config is None
    assert len(record.problems) == 1
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("run_id", ["../../../etc/passwd", "a" * 31, "F" * 32, "%2e%2e" + "0" * 26])
def test_a_hostile_run_id_never_reaches_a_store(run_id: str, tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/none.db"
    for read in (lambda: read_run(run_id, nowhere), lambda: metric_history(run_id, ["x"], nowhere)):
        with pytest.raises(UserError, match="32 lower-case hex digits"):
            read()


def test_an_unknown_run_is_a_user_error(store_uri: str) -> None:
    for read in (lambda: read_run("0" * 32, store_uri), lambda: metric_history("0" * 32, ["x"], store_uri)):
        with pytest.raises(UserError, match=r"0{32} is not in sqlite:.*mlflow.db"):
            read()


def test_listing_counts_flagged_runs_failed_and_deleted_ones_too(store_uri: str) -> None:
    ids = []
    for number in range(4):
        with RunWriter(store_uri, "exp", tags={"phase3_explore": "true"} if number != 2 else {}) as run:
            run.log_metrics({"n": number}, 0)
        ids.append(run.run_id)
        time.sleep(0.002)  # start times are in milliseconds
    client = open_client(store_uri)
    client.delete_run(ids[1])
    client.set_terminated(ids[3], "FAILED")
    flagged = list_runs("exp", store_uri, flagged="phase3_explore")
    assert [run.run_id for run in flagged] == [ids[0], ids[1], ids[3]]
    assert [run.lifecycle for run in flagged] == ["active", "deleted", "active"]
    assert [run.status for run in flagged] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.metrics["n"] for run in flagged] == [0, 1, 3]
    assert [run.run_id for run in list_runs("exp", store_uri)] == ids
    assert [run.run_id for run in list_runs("exp", store_uri, view_all=False)] == [ids[0], ids[2], ids[3]]
    assert latest_run("exp", store_uri).run_id == ids[3]


@pytest.mark.parametrize("view_all", [True, False])
def test_listing_goes_past_the_first_page(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, view_all: bool
) -> None:
    monkeypatch.setattr(fast_read, "SCHEMA", "that of another version")  # all is asked of MLflow
    monkeypatch.setattr(api_read, "RUNS_PER_PAGE", 7)
    client = open_client(store_uri)
    experiment = client.create_experiment("many")
    made = [client.create_run(experiment, start_time=1000 + n // 3).info.run_id for n in range(17)]
    for run_id in made[2:15:4]:
        client.delete_run(run_id)
    expected = sorted((1000 + n // 3, made[n]) for n in range(17) if view_all or n not in range(2, 15, 4))
    listed = list_runs("many", store_uri, view_all=view_all)
    assert [(run.start_time_ms, run.run_id) for run in listed] == expected
    read = read_runs("many", store_uri, view_all=view_all)
    assert [(run.start_time_ms, run.run_id) for run in read] == expected


def test_a_run_that_starts_while_pages_are_turned_is_not_listed_twice(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_read, "RUNS_PER_PAGE", 2)
    store = api_read.ApiStore(store_uri)
    client = open_client(store_uri)
    experiment = client.create_experiment("busy")
    made = [client.create_run(experiment, start_time=1000 + n).info.run_id for n in range(5)]
    turned = store._listed("busy", None, view_all=False)
    seen = [next(turned).info.run_id for _ in range(2)]
    client.create_run(experiment, start_time=2000)
    client.delete_run(made[0])
    seen += [run.info.run_id for run in turned]
    assert seen[:5] == made
    assert len(seen) == 6


def test_the_latest_run_of_a_phase(store_uri: str) -> None:
    made = {}
    for phase in ("2", "3"):
        with RunWriter(store_uri, "exp", tags={ledger.TAG_PHASE: phase}) as run:
            run.log_text(ledger.CONFIG_RESOLVED, f"phase: {phase}\n")
        made[phase] = run.run_id
        time.sleep(0.002)
    assert latest_run("exp", store_uri).run_id == made["3"]
    assert (
        latest_run("exp", store_uri, phase=2).run_id == latest_run("exp", store_uri, "2").run_id == made["2"]
    )
    assert latest_run("exp", store_uri, phase=2).config == {"phase": 2}
    open_client(store_uri).delete_run(made["2"])
    with pytest.raises(UserError, match="no run of phase 2"):
        latest_run("exp", store_uri, phase=2)


def test_an_unknown_experiment_is_a_user_error_that_names_the_known(store_uri: str) -> None:
    with pytest.raises(UserError, match=r"'nope' is not in sqlite:.* has 'Default'"):
        list_runs("nope", store_uri)
    with pytest.raises(UserError, match="'nope' is not in"):
        latest_run("nope", store_uri)


def test_a_tag_name_cannot_smuggle_a_filter(store_uri: str) -> None:
    with pytest.raises(UserError, match="tag name"):
        list_runs("Default", store_uri, flagged="x` = 'true' OR tags.`y")


def test_the_row_order_of_a_table_is_the_order_of_its_file(
    store_uri: str, stress_row: dict[str, Any]
) -> None:
    rows = [stress_row | {"id": f"s{n}"} for n in (3, 1, 2)]
    with RunWriter(store_uri, "exp") as run:
        run.log_jsonl(ledger.TABLE_STRESS, rows)
    table = read_run(run.run_id, store_uri).stress_table
    assert table is not None
    assert [row.id for row in table] == ["s3", "s1", "s2"]
