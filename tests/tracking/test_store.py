from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking.reader import read_run
from cedkv.tracking.store import (
    check_store,
    open_client,
    prepare_store,
    project_root,
    resolve_uri,
    shown,
)
from cedkv.tracking.writer import RunWriter


def test_the_configured_store_comes_before_the_environment_and_that_before_the_default(
    tmp_path: Path,
) -> None:
    env = {"MLFLOW_TRACKING_URI": "http://tracking:5000"}
    assert resolve_uri("https://configured", env, tmp_path) == "https://configured"
    assert resolve_uri(None, env, tmp_path) == "http://tracking:5000"
    default = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert (
        resolve_uri(None, {}, tmp_path) == resolve_uri(None, {"MLFLOW_TRACKING_URI": ""}, tmp_path) == default
    )


def test_a_relative_database_lies_under_the_project_wherever_a_command_starts(tmp_path: Path) -> None:
    assert resolve_uri("sqlite:///logs/x.db", {}, tmp_path) == f"sqlite:///{tmp_path}/logs/x.db"
    assert resolve_uri("sqlite:////data/x.db", {}, tmp_path) == "sqlite:////data/x.db"


@pytest.mark.parametrize(
    "uri", ["./mlruns", "mlruns", "/data/mlruns", "file:./mlruns", "file:///data/mlruns"]
)
def test_a_folder_of_files_is_refused_with_the_database_to_use_instead(uri: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"MLflow 3 no longer writes; use a database: sqlite:////.*mlruns/mlflow\.db"
    ):
        resolve_uri(uri, {}, tmp_path)
    with pytest.raises(UserError, match="use a database"):
        prepare_store(uri)


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "ftp://host/x", "redis://h"]
)
def test_other_kinds_of_store_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tracking store"):
        resolve_uri(uri, {}, tmp_path)


@pytest.mark.parametrize("folder", ["a%20b", "what?"])
def test_a_path_that_a_database_uri_cannot_hold_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose a path without it"):
        resolve_uri(None, {}, tmp_path / folder)


def test_the_project_is_the_repository_around_the_working_folder(tmp_path: Path) -> None:
    inner = tmp_path / "repo" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "repo" / ".git").mkdir()
    assert project_root(inner) == tmp_path / "repo"


@pytest.mark.parametrize("uri", ["http://me:secret@host:5000", "postgresql://me:secret@db/mlflow"])
def test_a_password_is_refused_where_it_would_be_logged(uri: str) -> None:
    for configured, env in ((uri, {}), (None, {"MLFLOW_TRACKING_URI": uri})):
        with pytest.raises(UserError, match="holds a password") as refused:
            resolve_uri(configured, env, Path("/"))
        assert "secret" not in str(refused.value)


def test_a_password_is_never_shown() -> None:
    assert shown("postgresql://me:secret@db:5432/mlflow") == "postgresql://me:***@db:5432/mlflow"


RACER = """
import sys
from cedkv.tracking.store import prepare_store
uri, task = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
prepare_store(uri)
if task == "log":
    from cedkv.tracking.writer import RunWriter
    with RunWriter(uri, "race", name="racer") as run:
        run.log_metrics({"x": 1.0}, 0)
    print(run.run_id)
"""


def test_four_processes_may_create_one_fresh_store_at_once_and_log_to_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/한 글/mlflow.db"
    racers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RACER, uri, task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for task in ("log", "log", "prepare", "prepare")  # importing mlflow is what takes long
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    outcomes = [racer.communicate("go\n", timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, outcomes
    assert [err for _, err in outcomes] == [""] * 4  # no warning, no log line, no traceback
    runs = [read_run(out.strip(), uri) for out, _ in outcomes[:2]]
    assert [(run.status, run.metrics["x"]) for run in runs] == [("FINISHED", 1.0)] * 2
    assert len({run.experiment_id for run in runs}) == 1
    left = sorted(path.name for path in (tmp_path / "한 글").iterdir())
    assert [name for name in left if not name.endswith(("-wal", "-shm"))] == [
        "artifacts",
        "mlflow.db",
        "spool",
    ]
    assert not list((tmp_path / "한 글" / "spool").iterdir()), "nothing waits"
    with closing(sqlite3.connect(tmp_path / "한 글" / "mlflow.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_preparing_again_changes_nothing(store_uri: str, tmp_path: Path) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    before = database.read_bytes()
    prepare_store(store_uri)
    assert database.read_bytes() == before


Door = Callable[[str], None]


@pytest.fixture(params=[check_store, prepare_store])
def door(request: pytest.FixtureRequest) -> Door:
    """A store is refused before anything is loaded, and again when the run starts: it may have changed."""
    return request.param


def test_checking_a_store_that_could_be_written_creates_nothing(tmp_path: Path) -> None:
    check_store(f"sqlite:///{tmp_path}/new/mlruns/mlflow.db")
    assert _tree(tmp_path) == []


def _tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_store_below_a_file_is_refused_and_leaves_nothing(door: Door, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); .* set tracking\.uri"):
        door(f"sqlite:///{tmp_path}/file/mlruns/mlflow.db")
    assert _tree(tmp_path) == before


def test_a_database_path_that_is_a_folder_is_refused_and_leaves_nothing(door: Door, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=r"cannot be written .*set tracking\.uri"):
        door(f"sqlite:///{tmp_path}/mlflow.db")
    assert _tree(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_and_leaves_nothing(door: Door, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        door(f"sqlite:///{folder}/mlruns/mlflow.db")
    assert _tree(tmp_path) == [str(folder)]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_file_system_that_takes_no_file_is_refused(door: Door) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        door("sqlite:////proc/mlruns/mlflow.db")


def test_what_is_no_database_is_refused_and_kept(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("my thesis\n" * 100)
    with pytest.raises(UserError, match=r"cannot be written .*not a database"):
        door(f"sqlite:///{file}")
    with pytest.raises(UserError, match="cannot be read"):
        open_client(f"sqlite:///{file}")
    assert file.read_text() == "my thesis\n" * 100
    assert _tree(tmp_path) == [str(file)]


def test_a_database_of_another_application_is_refused_and_kept(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"another application .*'orders'"):
        door(f"sqlite:///{file}")
    assert file.read_bytes() == before
    assert _tree(tmp_path) == [str(file)]


def test_an_older_schema_is_refused_with_the_command_that_upgrades_it(store_uri: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    with pytest.raises(UserError, match=r"another version of MLflow; .*mlflow db upgrade"):
        open_client(store_uri)


def test_asking_about_a_run_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; a run creates it"):
        open_client(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    assert _tree(tmp_path) == []


def test_a_server_that_does_not_answer_is_refused_at_once(door: Door) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(
        UserError, match=rf"no MLflow server answers at http://127\.0\.0\.1:{port}: .*start it"
    ):
        door(f"http://127.0.0.1:{port}")


def _run(uri: str, text: str) -> str:
    with RunWriter(uri, "moving") as run:
        run.log_text("config/resolved.yaml", text)
    return run.run_id


def test_a_moved_store_is_readable_and_new_runs_stay_in_it(store_uri: str, tmp_path: Path) -> None:
    first = _run(store_uri, "n: 1")
    moved = tmp_path / "elsewhere"
    (tmp_path / "mlruns").rename(moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    assert read_run(first, uri).config == {"n": 1}
    second = _run(uri, "n: 2")
    assert not (tmp_path / "mlruns").exists()
    assert read_run(second, uri).config == {"n": 2}
    recorded = [open_client(uri).get_run(run).info.artifact_uri for run in (first, second)]
    assert all(place.startswith(str(moved)) for place in recorded), recorded


def test_a_copied_store_never_writes_into_the_original(store_uri: str, tmp_path: Path) -> None:
    first = _run(store_uri, "n: 1")
    shutil.copytree(tmp_path / "mlruns", tmp_path / "copy")
    before = _tree(tmp_path / "mlruns")
    second = _run(f"sqlite:///{tmp_path}/copy/mlflow.db", "n: 2")
    assert [path for path in _tree(tmp_path / "mlruns") if second in path] == []
    assert set(before) - set(_tree(tmp_path / "mlruns")) <= {
        f"{tmp_path}/mlruns/mlflow.db-{x}" for x in ("wal", "shm")
    }
    assert read_run(first, store_uri).config == {"n": 1}


def test_a_copy_of_the_database_alone_still_finds_the_artifacts(store_uri: str, tmp_path: Path) -> None:
    first = _run(store_uri, "n: 1")
    (tmp_path / "backup").mkdir()
    shutil.copyfile(tmp_path / "mlruns" / "mlflow.db", tmp_path / "backup" / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/backup/mlflow.db"
    prepare_store(uri)
    assert read_run(first, uri).config == {"n": 1}
