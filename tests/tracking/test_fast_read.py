"""The database file read directly, and the same store through MLflow: field by field the same."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking import fast_read, reader, sqlite
from cedkv.tracking.backend import Metric, MlflowClient, Param, RunTag
from cedkv.tracking.fast_read import SCHEMA, open_database, written_schema
from cedkv.tracking.reader import latest_run, list_runs, metric_history, read_run, read_runs, read_traces
from cedkv.tracking.record import RunRecord, StressRow
from cedkv.tracking.store import database_path, open_client
from cedkv.tracking.writer import RunWriter

EXPERIMENT = "요약/🜁 'a' \"b\" %_\\"


class Ways:
    """Asks the same question twice: of the file alone, and of MLflow alone."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def fast(self, ask: Callable[[], Any]) -> Any:
        with self._patch.context() as patch:
            patch.setattr(reader._Store, "_api", property(_not_here))
            return ask()

    def api(self, ask: Callable[[], Any]) -> Any:
        with self._patch.context() as patch:
            patch.setattr(fast_read, "SCHEMA", "that of another version")
            return ask()

    def agree(self, ask: Callable[[], Any]) -> Any:
        fast, api = self.fast(ask), self.api(ask)
        assert _comparable(fast) == _comparable(api)
        return fast


def _not_here(_: object) -> NoReturn:
    pytest.fail("MLflow was asked")


def _comparable(answer: Any) -> Any:
    """As text, in which NaN equals NaN and 1 is not 1.0; mappings in one order."""
    if isinstance(answer, RunRecord):
        return {field.name: _comparable(getattr(answer, field.name)) for field in dataclasses.fields(answer)}
    if isinstance(answer, dict):
        return sorted((key, _comparable(value)) for key, value in answer.items())
    if isinstance(answer, list):
        return [_comparable(item) for item in answer]
    return repr(answer)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def _log_finished(uri: str, stress_row: dict[str, Any], on_row: dict[str, Any]) -> str:
    params = {"phase3": {f"key{i}": i for i in range(700)}}
    tags = {ledger.TAG_PHASE: "3", "phase3_explore": "true", "empty": "", "text": "é\n\t\u2028 🜁 '\"%_\\"}
    with RunWriter(uri, EXPERIMENT, name="끝난 run 🜁", tags=tags, params=params) as run:
        for step in (0, 5, 3):
            run.log_metrics({"x": step / 3, "kl": math.inf if step == 5 else 1.0, "n": 2**53 + 1}, step)
        run.log_metrics({"tiny": 5e-324, "huge": 1.7e308, "zero": -0.0, "atom_mass/key": 0.1}, 0)
        run.log_text(ledger.CONFIG_RESOLVED, "phase3: {eval: {on_samples: 8}}\n")
        run.log_json(ledger.DATA_SPEC, {"schema": 1})
        run.log_jsonl(ledger.TABLE_STRESS, [stress_row, stress_row | {"typical": math.nan}])
        run.log_jsonl(ledger.TABLE_ON, [on_row])
        run.log_json(ledger.LOSS_CURVE, [{"step": 0, "loss": 1.5}])
    return run.run_id


def _log_failed(uri: str) -> str:
    writer = RunWriter(uri, EXPERIMENT, name="failed", tags={ledger.TAG_PHASE: "2"})

    def fail() -> NoReturn:
        with writer as run:
            run.log_metrics({"kl": math.nan}, 0)
            run.log_text(ledger.TABLE_ON, "not a table")
            raise RuntimeError("no more\nmemory")

    with pytest.raises(RuntimeError):
        fail()
    return writer.run_id


@pytest.fixture
def filled(store_uri: str, stress_row: dict[str, Any], on_row: dict[str, Any]) -> dict[str, str]:
    """Runs in every state, by what is special about them."""
    made = {"finished": _log_finished(store_uri, stress_row, on_row), "failed": _log_failed(store_uri)}
    client = open_client(store_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    for name in ("running", "killed", "deleted", "unnamed", "tagged only"):
        made[name] = client.create_run(experiment, start_time=1000, run_name=name).info.run_id
    client.log_metric(made["running"], "x", 1.0)
    client.set_terminated(made["killed"], "KILLED")
    client.set_tag(made["deleted"], "phase3_explore", "true")
    client.delete_run(made["deleted"])
    with closing(sqlite3.connect(database_path(store_uri))) as db, db:
        for name in ("unnamed", "tagged only"):
            db.execute("UPDATE runs SET name = NULL WHERE run_uuid = ?", (made[name],))
        db.execute("DELETE FROM tags WHERE run_uuid = ?", (made["unnamed"],))
    return made


def test_every_run_reads_the_same_either_way(store_uri: str, ways: Ways, filled: dict[str, str]) -> None:
    read = {
        name: ways.agree(lambda run_id=run_id: read_run(run_id, store_uri)) for name, run_id in filled.items()
    }
    assert {name: run.status for name, run in read.items()} == {
        "finished": "FINISHED",
        "failed": "FAILED",
        "running": "RUNNING",
        "killed": "KILLED",
        "deleted": "RUNNING",
        "unnamed": "RUNNING",
        "tagged only": "RUNNING",
    }
    assert read["deleted"].lifecycle == "deleted"
    finished, failed = read["finished"], read["failed"]
    assert (finished.name, finished.problems) == ("끝난 run 🜁", ())
    assert finished.metrics["x"] == 5 / 3
    assert math.isnan(finished.metrics["kl"])
    assert len(finished.params) == 700
    assert finished.tags["text"] == "é\n\t\u2028 🜁 '\"%_\\"
    assert len(finished.stress_table) == 2
    assert (failed.tags[ledger.TAG_ERROR], len(failed.problems)) == ("RuntimeError: no more\nmemory", 1)
    assert (read["unnamed"].name, read["tagged only"].name) == ("", "tagged only")
    assert read["running"].end_time_ms is None


def test_every_listing_is_the_same_either_way(store_uri: str, ways: Ways, filled: dict[str, str]) -> None:
    for view_all in (True, False):
        listed = ways.agree(lambda view_all=view_all: list_runs(EXPERIMENT, store_uri, view_all=view_all))
        read = ways.agree(lambda view_all=view_all: list(read_runs(EXPERIMENT, store_uri, view_all=view_all)))
        assert [run.run_id for run in listed] == [run.run_id for run in read]
        assert len(listed) == len(filled) - (not view_all)
    flagged = ways.agree(lambda: list_runs(EXPERIMENT, store_uri, flagged="phase3_explore"))
    assert {run.run_id for run in flagged} == {filled["finished"], filled["deleted"]}
    for phase, name in ((None, "failed"), (2, "failed"), ("3", "finished")):
        latest = ways.agree(lambda phase=phase: latest_run(EXPERIMENT, store_uri, phase))
        assert latest.run_id == filled[name]
    with pytest.raises(UserError, match="no run of phase 7"):
        ways.fast(lambda: latest_run(EXPERIMENT, store_uri, 7))
    assert ways.agree(lambda: list_runs("Default", store_uri)) == []
    names = ["x", "kl", "n", "nonfinite/kl", "never"]
    history = ways.agree(lambda: metric_history(filled["finished"], names, store_uri))
    assert [(point.step, point.value) for point in history["x"]] == [(0, 0.0), (3, 1.0), (5, 5 / 3)]
    assert list(ways.agree(lambda: read_traces(filled["finished"], store_uri))) == [ledger.LOSS_CURVE]


def test_values_logged_twice_at_a_step_come_in_the_same_order(store_uri: str, ways: Ways) -> None:
    client = open_client(store_uri)
    run_id = client.create_run("0").info.run_id
    logged = [(3.0, 30, 1), (1.0, 10, 1), (2.0, 20, 1), (9.0, 20, 1), (7.0, 20, 1), (5.0, 5, 2), (6.0, 50, 0)]
    for point in logged:
        client.log_metric(run_id, "x", *point)
    history = ways.agree(lambda: metric_history(run_id, ["x"], store_uri))["x"]
    assert [point.value for point in history] == [6.0, 1.0, 2.0, 7.0, 9.0, 3.0, 5.0]


def test_of_runs_that_started_together_the_same_one_is_the_latest(store_uri: str, ways: Ways) -> None:
    client = open_client(store_uri)
    experiment = client.create_experiment("tied")
    for start in (1000, 2000, 2000, 2000):
        client.create_run(experiment, start_time=start)
    ways.agree(lambda: latest_run("tied", store_uri))
    ways.agree(lambda: list_runs("tied", store_uri))


def test_the_runs_of_a_deleted_experiment_read_the_same(
    store_uri: str, ways: Ways, filled: dict[str, str]
) -> None:
    client = open_client(store_uri)
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    listed = ways.agree(lambda: list_runs(EXPERIMENT, store_uri))
    assert {run.lifecycle for run in listed} == {"deleted"}
    assert ways.agree(lambda: list_runs(EXPERIMENT, store_uri, view_all=False)) == []


def test_what_is_not_there_is_refused_with_the_same_words(
    store_uri: str, ways: Ways, filled: dict[str, str]
) -> None:
    for ask in (
        lambda: read_run("0" * 32, store_uri),
        lambda: read_runs([filled["failed"], "0" * 32], store_uri),
        lambda: metric_history("0" * 32, ["x"], store_uri),
        lambda: read_traces("0" * 32, store_uri),
        lambda: list_runs("absent", store_uri),
        lambda: read_runs("absent", store_uri),
        lambda: latest_run("absent", store_uri),
        lambda: latest_run("Default", store_uri),
    ):
        refusals = []
        for way in (lambda ask: ask(), ways.api):
            with pytest.raises(UserError) as refused:
                way(ask)
            refusals.append(str(refused.value))
        assert refusals[0] == refusals[1]
        assert "not in sqlite:" in refusals[0] or "has no run" in refusals[0]


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
KEYS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\- ]{0,8}[A-Za-z0-9_]", fullmatch=True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tags=st.dictionaries(KEYS, TEXT, max_size=4),
    params=st.dictionaries(KEYS, TEXT, max_size=4),
    metrics=st.lists(st.tuples(KEYS, st.floats(), st.integers(0, 5)), max_size=6),
)
def test_anything_a_store_takes_reads_the_same(
    store_uri: str,
    ways: Ways,
    tags: dict[str, str],
    params: dict[str, str],
    metrics: list[tuple[str, float, int]],
) -> None:
    client = open_client(store_uri)
    run_id = client.create_run("0").info.run_id
    client.log_batch(
        run_id,
        [Metric(key, value, 1, step) for key, value, step in metrics],
        [Param(*item) for item in params.items()],
        [RunTag(*item) for item in tags.items()],
    )
    run = ways.agree(lambda: read_run(run_id, store_uri))
    assert {key: run.tags[key] for key in tags} == tags
    assert run.params == params


def test_a_moved_store_and_a_copy_of_the_database_alone(
    store_uri: str, ways: Ways, filled: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "backup").mkdir()
    shutil.copyfile(database_path(store_uri), tmp_path / "backup" / "mlflow.db")
    copy = f"sqlite:///{tmp_path}/backup/mlflow.db"
    assert ways.agree(lambda: read_run(filled["finished"], copy)).config is not None
    moved = tmp_path / "다른 곳"
    (tmp_path / "mlruns").rename(moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    assert ways.agree(lambda: read_run(filled["finished"], uri)).config is not None
    assert len(ways.agree(lambda: list(read_runs(EXPERIMENT, uri)))) == len(filled)


def test_artifacts_that_are_not_on_this_disk_are_left_to_mlflow(store_uri: str, ways: Ways) -> None:
    client = open_client(store_uri)
    experiment = client.create_experiment("remote", artifact_location="mlflow-artifacts:/remote")
    run_id = client.create_run(experiment).info.run_id
    database = open_database(database_path(store_uri))
    assert database is not None
    with closing(database):
        assert database.run(run_id) is None
        assert database.ids("remote", None, view_all=True) == [run_id]
    assert (
        len(read_run(run_id, store_uri).problems)
        == len(ways.api(lambda: read_run(run_id, store_uri)).problems)
        == 5
    )


# ------------------------------------------------------------------------------------- a store that is being written
WRITER = """
import sys
from cedkv.tracking.writer import RunWriter
with RunWriter(sys.argv[1], "live", name="writer") as run:
    print(run.run_id, flush=True)
    step = 0
    while step < 100_000:
        run.log_metrics({"x": step, "y": step}, step)
        run.flush()
        if step % 20 == 0:
            run.log_text("config/resolved.yaml", f"step: {step}\\n")
        step += 1
"""


@pytest.fixture
def live(store_uri: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process that writes a run without a pause."""
    command = [sys.executable, "-c", WRITER, store_uri]
    writer = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert writer.stdout is not None
        yield writer.stdout.readline().strip(), writer
    finally:
        writer.send_signal(signal.SIGCONT)
        writer.kill()
        writer.communicate()


def test_a_run_is_read_while_another_process_writes_it(
    store_uri: str, ways: Ways, live: tuple[str, subprocess.Popen[str]]
) -> None:
    run_id, writer = live
    seen = [ways.fast(lambda: read_run(run_id, store_uri)) for _ in range(200)]
    assert {run.status for run in seen} == {"RUNNING"}
    steps = [run.metrics.get("x", -1) for run in seen]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0], "the writer went on"
    assert steps == [run.metrics.get("y", -1) for run in seen], "one state of the store, not two"
    writer.send_signal(signal.SIGSTOP)
    os.waitpid(writer.pid, os.WUNTRACED)  # it stands still some time after it was told to
    ways.agree(lambda: read_run(run_id, store_uri))
    ways.agree(lambda: list_runs("live", store_uri))
    ways.agree(lambda: list(read_runs("live", store_uri)))


def test_a_record_is_one_state_of_the_store_though_it_takes_several_queries(
    store_uri: str, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(database_path(store_uri))
    assert database is not None
    connection = database._db

    class Meddled:
        """Another process ends the run after its status was read and before its tags are."""

        def execute(self, query: str, *values: object) -> sqlite3.Cursor:
            if "FROM tags" in query:
                with closing(sqlite3.connect(database_path(store_uri))) as db, db:
                    db.execute("UPDATE tags SET value = 'ended'")
            return connection.execute(query, *values)

    monkeypatch.setattr(database, "_db", Meddled())
    with closing(connection):
        found = database.run(filled["finished"])
    assert found is not None
    assert found[0].tags[ledger.TAG_PHASE] == "3"
    assert set(read_run(filled["finished"], store_uri).tags.values()) == {"ended"}


def test_a_transaction_in_progress_hides_nothing_and_delays_nothing(
    store_uri: str, ways: Ways, filled: dict[str, str]
) -> None:
    before = _comparable(read_run(filled["running"], store_uri))
    with closing(sqlite3.connect(database_path(store_uri), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE runs SET status = 'FINISHED'")
        assert _comparable(ways.fast(lambda: read_run(filled["running"], store_uri))) == before
        db.execute("COMMIT")
    assert ways.agree(lambda: read_run(filled["running"], store_uri)).status == "FINISHED"


def test_a_database_without_a_write_ahead_log_reads_the_same(
    store_uri: str, ways: Ways, filled: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "mlruns", tmp_path / "copy")
    copy = f"sqlite:///{tmp_path}/copy/mlflow.db"
    with closing(sqlite3.connect(database_path(copy))) as db:
        assert db.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    assert len(ways.agree(lambda: list(read_runs(EXPERIMENT, copy)))) == len(filled)


def test_the_connection_cannot_write(store_uri: str) -> None:
    with (
        closing(sqlite.connect_to_read(database_path(store_uri))) as db,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        db.execute("DELETE FROM experiments")


# ------------------------------------------------------------------------------------- what only MLflow may answer
def test_the_tables_read_here_are_those_the_installed_mlflow_writes(store_uri: str) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert SCHEMA == written_schema() == _get_latest_schema_revision(), (
        "MLflow has new tables: check the queries of fast_read against them, then change SCHEMA"
    )


def _older(path: Path, _: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")


def _without_version(path: Path, _: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM alembic_version")


def _newer_mlflow(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fast_read, "written_schema", lambda: "0123456789ab")


def _workspaces(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")


def _without_a_column(path: Path, _: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ALTER TABLE alembic_version RENAME COLUMN version_num TO version")


def _another_workspace(path: Path, _: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE experiments SET workspace = 'team' WHERE name != 'Default'")


@pytest.mark.parametrize(
    "change", [_older, _without_version, _without_a_column, _newer_mlflow, _workspaces, _another_workspace]
)
def test_a_store_that_is_not_known_is_not_read_here(
    store_uri: str, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
) -> None:
    database = open_database(database_path(store_uri))
    assert database is not None
    database.close()
    change(database_path(store_uri), monkeypatch)
    assert open_database(database_path(store_uri)) is None


@pytest.mark.parametrize(
    "read",
    [
        lambda uri: read_run("0" * 32, uri),
        lambda uri: list_runs("Default", uri),
        lambda uri: read_runs("Default", uri),
        lambda uri: latest_run("Default", uri),
    ],
)
def test_an_older_schema_is_refused_with_the_command_that_upgrades_it(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object]
) -> None:
    _older(database_path(store_uri), monkeypatch)
    with pytest.raises(UserError, match=r"another version of MLflow; .*mlflow db upgrade"):
        read(store_uri)


def test_what_the_file_cannot_answer_is_asked_of_mlflow(
    store_uri: str, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _comparable(read_run(filled["finished"], store_uri))

    def broken(*_: object) -> NoReturn:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(fast_read.Database, "run", broken)
    assert _comparable(read_run(filled["finished"], store_uri)) == before


@pytest.mark.parametrize("column", ["start_time", "user_id", "status"])
def test_a_run_that_mlflow_refuses_is_refused_here_too(
    store_uri: str, ways: Ways, filled: dict[str, str], column: str
) -> None:
    with closing(sqlite3.connect(database_path(store_uri))) as db, db:
        db.execute(f"UPDATE runs SET {column} = NULL WHERE run_uuid = ?", (filled["failed"],))  # noqa: S608
    for ask in (lambda: read_run(filled["failed"], store_uri), lambda: list_runs(EXPERIMENT, store_uri)):
        with pytest.raises(UserError, match=f"{column} cannot be None"):
            ask()


def test_reading_a_local_store_imports_no_mlflow(store_uri: str, filled: dict[str, str]) -> None:
    code = (
        "import sys\nfrom cedkv.tracking.reader import read_run, read_runs\n"
        f"read_run({filled['finished']!r}, sys.argv[1]); list(read_runs(sys.argv[2], sys.argv[1]))\n"
        "sys.exit('mlflow' in sys.modules or 'sqlalchemy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, store_uri, EXPERIMENT], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------ runs one by one
def test_runs_named_by_id_come_by_start_time_each_once_deleted_ones_too(
    store_uri: str, ways: Ways, filled: dict[str, str]
) -> None:
    chosen = [filled[name] for name in ("failed", "deleted", "finished", "killed", "deleted")]
    runs = ways.agree(lambda: list(read_runs(chosen, store_uri, view_all=False)))
    together = sorted([filled["deleted"], filled["killed"]])
    assert [run.run_id for run in runs] == [*together, filled["finished"], filled["failed"]]
    assert list(read_runs([], store_uri)) == []


def test_what_is_wrong_with_a_request_shows_before_the_first_run(store_uri: str, tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/none.db"
    for runs, uri, says in (
        (["../../etc/passwd"], store_uri, "32 lower-case hex digits"),
        (" x", store_uri, "experiment name"),
        ("Default", nowhere, "does not exist; a run creates it"),
        ("Default", "./mlruns", "use a database"),
    ):
        with pytest.raises(UserError, match=says):
            read_runs(runs, uri)


def _log_table(uri: str, stress_row: dict[str, Any], rows: int) -> str:
    with RunWriter(uri, "tables") as run:
        run.log_jsonl(ledger.TABLE_STRESS, (stress_row | {"id": f"s{n}"} for n in range(rows)))
    return run.run_id


def _stress_rows_alive() -> int:
    gc.collect()
    return sum(type(thing) is StressRow for thing in gc.get_objects())


@pytest.mark.slow
def test_one_run_is_in_memory_at_a_time(store_uri: str, stress_row: dict[str, Any]) -> None:
    for _ in range(6):
        _log_table(store_uri, stress_row, 100)
    before, alive = _stress_rows_alive(), []
    for run in read_runs("tables", store_uri):
        assert run.stress_table is not None
        assert len(run.stress_table) == 100
        del run
        alive.append(_stress_rows_alive() - before)
    assert len(alive) == 6
    assert max(alive) <= 100, "what was read before is let go"


def test_a_run_is_read_when_its_turn_comes(
    store_uri: str, stress_row: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (_log_table(store_uri, stress_row, 1) for _ in range(2))
    runs = read_runs([first, second], store_uri)
    assert next(runs).run_id == first
    open_client(store_uri).delete_run(second)
    (table,) = (tmp_path / "mlruns" / "artifacts" / "tables" / second).rglob("off_stress.jsonl")
    table.write_text("damaged")
    later = next(runs)
    assert (later.lifecycle, later.stress_table, len(later.problems)) == ("deleted", None, 1)


def test_a_run_erased_before_its_turn_is_an_error(store_uri: str, stress_row: dict[str, Any]) -> None:
    first, second = (_log_table(store_uri, stress_row, 1) for _ in range(2))
    runs = read_runs("tables", store_uri)
    assert next(runs).run_id == first
    MlflowClient(tracking_uri=store_uri)._tracking_client.store._hard_delete_run(second)
    with pytest.raises(UserError, match=f"run {second} is not in"):
        next(runs)
