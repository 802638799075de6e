"""`cedkv sync`: what a process had logged before it died is in the store, once, and its run says that it died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.cli import main
from cedkv.tracking.backend import TrackingError
from cedkv.tracking.journal import Journal
from cedkv.tracking.reader import metric_history, read_run
from cedkv.tracking.reopen import Resumed
from cedkv.tracking.spool import DIED, replay, spool_of, sync
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter

DIES = """
import os, signal, sys, time
from cedkv.tracking.writer import RunWriter

with RunWriter(sys.argv[1], "dies") as run:
    send, sent = run._outbox._deliver, []

    def deliver(records):  # two requests go through, the answer to the second is lost
        if len(sent) == 2:
            time.sleep(60)
        send(records)
        sent.append(1)
        if len(sent) == 2:
            time.sleep(60)

    run._outbox._deliver = deliver
    for step in range(2000):
        run.log_metrics({"x": step / 7, "y": float("nan")}, step)
    run.log_text("notes.txt", "the last thing")
    while len(sent) < 2:
        time.sleep(0.01)
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def died(store_uri: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DIES, store_uri],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_nothing_that_was_logged_is_lost_with_the_process(died: str, store_uri: str, capsys) -> None:
    assert len(metric_history(died, ["x"], store_uri)["x"]) < 2000
    assert main(["sync", "--tracking-uri", store_uri]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{died}  ")
    assert line.endswith("records sent; the run is FAILED\n")
    history = metric_history(died, ["x", "y", "nonfinite/y"], store_uri)
    assert [(p.step, p.value) for p in history["x"]] == [(n, n / 7) for n in range(2000)]
    assert [p.value for p in history["nonfinite/y"]] == [float(n) for n in range(1, 2001)]
    record = read_run(died, store_uri)
    assert (record.status, record.tags[ledger.TAG_ERROR]) == ("FAILED", DIED)
    assert [file.path for file in open_client(store_uri).list_artifacts(died)] == ["notes.txt"]
    assert main(["sync", "--tracking-uri", store_uri]) == 0
    assert capsys.readouterr().out == "nothing waits on this machine\n"


def test_a_run_that_goes_on_sends_first_what_its_process_could_not(died: str, store_uri: str) -> None:
    with RunWriter(store_uri, "dies", resumes=Resumed(died, 2000)) as run:
        run.log_metrics({"x": 1999 / 7}, 1999)  # computed again
        run.log_metrics({"x": 1.0}, 2000)
    history = metric_history(died, ["x"], store_uri)["x"]
    assert [p.step for p in history] == list(range(2001))
    assert read_run(died, store_uri).status == "FINISHED"
    assert not list(sync(store_uri))


def test_a_run_that_is_open_is_left_alone(store_uri: str, capsys) -> None:
    with RunWriter(store_uri, "open") as run:
        run.log_metrics({"x": 1.0}, 0)
        ((found),) = sync(store_uri)
        assert (found.run_id, found.state) == (run.run_id, "open")
    assert read_run(run.run_id, store_uri).status == "FINISHED"


def test_a_run_that_the_store_does_not_have_is_named_and_kept(store_uri: str, capsys) -> None:
    with RunWriter(store_uri, "one") as run:
        pass
    with Journal(spool_of("0" * 32, store_uri)) as journal:
        journal.append({"kind": "tags", "tags": {"a": "b"}})
    assert main(["sync", "--tracking-uri", store_uri]) == 1
    assert "is refused by this store (Run with id=" in capsys.readouterr().out
    assert spool_of("0" * 32, store_uri).is_dir()
    assert read_run(run.run_id, store_uri).status == "FINISHED"


def test_one_journal_that_is_refused_and_a_folder_that_is_none_do_not_stop_the_others(
    died: str, store_uri: str, capsys
) -> None:
    with RunWriter(store_uri, "deleted") as run:
        pass
    open_client(store_uri).delete_run(run.run_id)
    for run_id in (
        run.run_id,
        "0" * 32,
    ):  # in the order of their names they stand before and behind the other one
        with Journal(spool_of(run_id, store_uri)) as journal:
            journal.append({"kind": "tags", "tags": {"a": "b"}})
    (spool_of("0" * 32, store_uri).parent / "not a run").mkdir()
    assert main(["sync", "--tracking-uri", store_uri]) == 1
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {died, run.run_id, "0" * 32}
    assert "records sent" in lines[died]
    assert "is refused by this store" in lines[run.run_id]


@pytest.mark.parametrize(
    "file",
    [
        "../../precious/1.txt",
        "{root}/precious/1.txt",
        "files/../../../precious/1.txt",
        "files/1/..",
        "files/x/a",
    ],
)
def test_a_journal_names_files_of_its_own_only(store_uri: str, tmp_path: Path, file: str, capsys) -> None:
    """What a record names is sent and then removed: a damaged one must not reach anything else."""
    precious = tmp_path / "mlruns" / "precious" / "1.txt"
    with RunWriter(store_uri, "one") as run:
        pass
    precious.parent.mkdir()
    precious.write_text("keep")
    before = sorted(tmp_path.rglob("*"))
    file = file.format(root=tmp_path / "mlruns")
    with Journal(spool_of(run.run_id, store_uri)) as journal:
        journal._write(json.dumps({"kind": "file", "path": "x.txt", "file": file}).encode() + b"\n")
    assert main(["sync", "--tracking-uri", store_uri]) == 0
    assert "0 records sent; the run is FINISHED; 1 lines were damaged and are lost" in capsys.readouterr().out
    assert precious.read_text() == "keep"
    assert {path for path in before if path.suffix in {".txt", ".db"}} <= set(tmp_path.rglob("*"))
    assert not open_client(store_uri).list_artifacts(run.run_id, "x.txt")


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "metrics"},
        {"kind": "metrics", "points": [["x", 1.0, 1]]},
        {"kind": "metrics", "points": [["x", 1.0, 1, 1 << 70]]},
        {"kind": "metrics", "points": [[None, 1.0, 1, 1]]},
        {"kind": "tags", "tags": {"a": 1}},
        {"kind": "end", "status": "FINISHED"},
        {"kind": "file", "path": 1, "file": "files/1/a"},
        {"kind": "nonsense"},
        {},
        [],
    ],
)
def test_a_line_that_is_no_record_is_counted_and_passed_over(tmp_path: Path, record: object) -> None:
    sent = []
    with Journal(tmp_path) as journal:
        journal.append({"kind": "tags", "tags": {"a": "b"}})
        journal._write(json.dumps(record).encode() + b"\n")
        journal.append({"kind": "tags", "tags": {"c": "d"}})
        assert replay(journal, sent.extend) == (2, 1)
    assert [found["kind"] for found in sent] == ["tags", "damaged", "tags"]


def test_a_run_that_had_ended_is_judged_once_its_log_is_whole(store_uri: str, capsys) -> None:
    def away(_: object) -> None:
        raise ConnectionError("refused")

    writer = RunWriter(store_uri, "away", close_timeout_s=0.1)

    def loop() -> None:
        with writer as run:
            run._outbox._deliver = away
            run.log_metrics({"x": 1.0}, 0)

    with pytest.raises(TrackingError, match="1 records wait"):
        loop()
    assert read_run(writer.run_id, store_uri).status == "RUNNING"
    assert main(["sync", "--tracking-uri", store_uri]) == 0
    assert "the run is FINISHED, verdict inconclusive" in capsys.readouterr().out
    assert read_run(writer.run_id, store_uri).tags[ledger.TAG_VERDICT] == "inconclusive"
