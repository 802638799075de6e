"""Writing a verdict back: once is as good as twice, and two at once do no harm."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking.api_read import files_of
from cedkv.tracking.attach import write_back
from cedkv.tracking.reader import metric_history, read_run
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter

TAGS, METRICS, FILES = {"cedkv.verdict": "pass"}, {"gate/a": 1.0}, {"gate_report.md": "**PASS**\n"}


@pytest.fixture
def run_id(store_uri: str) -> str:
    with RunWriter(store_uri, "judged", tags={"mine": "kept"}) as run:
        run.log_metrics({"on_gain": 0.5}, 3)
    return run.run_id


def content(uri: str) -> list[object]:
    """Every row of the tables that a verdict writes to."""
    tables = ("tags", "metrics", "latest_metrics")
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as db:
        return [db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall() for table in tables]  # noqa: S608


def test_everything_is_there_beside_what_was(store_uri: str, run_id: str) -> None:
    assert write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)
    run = read_run(run_id, store_uri)
    assert (run.tags["cedkv.verdict"], run.tags["mine"]) == ("pass", "kept")
    assert run.metrics == {"on_gain": 0.5, "gate/a": 1.0}
    assert run.status == "FINISHED"
    client = open_client(store_uri)
    assert files_of(client, client.get_run(run_id), store_uri).text("gate_report.md") == "**PASS**\n"


def test_the_same_again_changes_nothing(store_uri: str, run_id: str) -> None:
    write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)
    before, (file,) = (
        content(store_uri),
        Path(store_uri.removeprefix("sqlite:///")).parent.glob("**/gate_report.md"),
    )
    written = file.stat().st_mtime_ns
    assert not write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)
    assert content(store_uri) == before
    assert file.stat().st_mtime_ns == written


def test_another_verdict_replaces_the_one_before(store_uri: str, run_id: str) -> None:
    write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)
    assert write_back(run_id, store_uri, tags={"cedkv.verdict": "fail"}, metrics={"gate/a": 0.0}, files={})
    run = read_run(run_id, store_uri)
    assert (run.tags["cedkv.verdict"], run.metrics["gate/a"]) == ("fail", 0.0)


def test_a_deleted_run_is_refused(store_uri: str, run_id: str) -> None:
    open_client(store_uri).delete_run(run_id)
    with pytest.raises(UserError, match="the tracking store refused"):
        write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)


def test_a_copied_store_writes_nothing_into_the_original(store_uri: str, run_id: str, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "mlruns", tmp_path / "copy")
    copy = f"sqlite:///{tmp_path}/copy/mlflow.db"
    write_back(run_id, copy, tags=TAGS, metrics=METRICS, files=FILES)
    assert list((tmp_path / "mlruns").rglob("gate_report.md")) == []
    assert len(list((tmp_path / "copy").rglob("gate_report.md"))) == 1
    assert "cedkv.verdict" not in read_run(run_id, store_uri).tags


JUDGE = """
import sys
from cedkv.tracking.attach import write_back
uri, run_id = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for n in range(5):
    write_back(run_id, uri, tags={"cedkv.verdict": "pass"}, metrics={"gate/a": 1.0}, files={"gate_report.md": "**PASS**\\n"})
"""


def test_two_judges_at_once_do_no_harm(store_uri: str, run_id: str) -> None:
    judges = [
        subprocess.Popen(
            [sys.executable, "-c", JUDGE, store_uri, run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for judge in judges:
        assert judge.stdout
        assert judge.stdout.readline() == "ready\n"
    outcomes = [judge.communicate("go\n", timeout=120) for judge in judges]
    assert [judge.returncode for judge in judges] == [0, 0], outcomes
    (points,) = metric_history(run_id, ["gate/a"], store_uri).values()
    assert [point.value for point in points] == [1.0]
    assert not write_back(run_id, store_uri, tags=TAGS, metrics=METRICS, files=FILES)
