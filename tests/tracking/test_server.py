"""The same run through a real ``mlflow server`` and through the database file: one reader, one result."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking import api_read
from cedkv.tracking.attach import write_back
from cedkv.tracking.backend import TrackingError
from cedkv.tracking.encode import encode_lines
from cedkv.tracking.ledgers import enter_explored, read_ledgers
from cedkv.tracking.reader import fetch, latest_run, list_runs, metric_history, read_run, read_runs
from cedkv.tracking.record import MetricPoint, RunRecord
from cedkv.tracking.spool import spool_of, sync
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter

STEPS = 2000
COMPARED = (
    "name",
    "status",
    "lifecycle",
    "params",
    "config",
    "data_spec",
    "stress_table",
    "on_table",
    "problems",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals of runs on a server lie below the folder a run starts in."""
    monkeypatch.chdir(tmp_path)


def _log(uri: str, source: Path, stress_row: dict[str, Any], on_row: dict[str, Any]) -> str:
    params = {f"group{i}": {"key": i} for i in range(130)}
    with RunWriter(uri, "same/요약", name="twin", tags={ledger.TAG_PHASE: "3"}, params=params) as run:
        for step in range(STEPS):
            run.log_metrics(
                {"phase3_loss": 1 / (step + 1), "kl": math.inf if step == 7 else step * 1e-3}, step
            )
        run.log_text(ledger.CONFIG_RESOLVED, "phase3: {eval: {on_samples: 8}}\n")
        run.log_json(ledger.DATA_SPEC, {"schema": 1})
        run.log_jsonl(ledger.TABLE_STRESS, [stress_row])
        run.log_text(ledger.TABLE_ON, "not a table")
        run.log_file(ledger.MEMORY_TENSORS, source)
        run.set_tags({"cedkv.strict_hf": "true"})
    return run.run_id


def _tags(record: RunRecord) -> dict[str, str]:
    return {name: value for name, value in record.tags.items() if name.startswith("cedkv.")}


def test_a_run_reads_the_same_from_a_server_and_from_a_database(
    server_uri: str, store_uri: str, tmp_path: Path, stress_row: dict[str, Any], on_row: dict[str, Any]
) -> None:
    source = tmp_path / "memory.safetensors"
    source.write_bytes(bytes(range(256)) * 100)
    records, histories = [], []
    for uri in (server_uri, store_uri):
        run_id = _log(uri, source, stress_row, on_row)
        records.append(read_run(run_id, uri))
        histories.append(metric_history(run_id, ["phase3_loss", "kl", "nonfinite/kl"], uri))
        assert [run.run_id for run in list_runs("same/요약", uri)] == [run_id]
        with pytest.raises(UserError, match="is not in"):
            read_run("0" * 32, uri)
    served, local = records
    for field in COMPARED:
        assert getattr(served, field) == getattr(local, field), field
    assert _tags(served) == _tags(local) == {"cedkv.phase": "3", "cedkv.strict_hf": "true"}
    assert served.metrics == local.metrics
    assert served.stress_table is not None
    assert [problem.split(":")[0] for problem in served.problems] == [ledger.TABLE_ON]
    for history in histories:
        assert [point.step for point in history["phase3_loss"]] == list(range(STEPS))
        assert history["kl"][-1].value == (STEPS - 1) * 1e-3
        assert math.isnan(history["kl"][7].value)
    assert _values(histories[0]["phase3_loss"]) == _values(histories[1]["phase3_loss"])
    assert [(p.step, p.value) for p in histories[0]["nonfinite/kl"]] == [(7, 1.0)]
    stored = open_client(server_uri).get_run(served.run_id).info.artifact_uri
    assert stored.startswith("mlflow-artifacts:"), "the server keeps the artifacts, nothing is written here"


def test_many_runs_are_read_page_by_page_from_a_server(
    server_uri: str, monkeypatch: pytest.MonkeyPatch, stress_row: dict[str, Any]
) -> None:
    monkeypatch.setattr(api_read, "RUNS_PER_PAGE", 3)
    client = open_client(server_uri)
    experiment = client.create_experiment("paged")
    made = []
    for number in range(8):
        run_id = client.create_run(experiment, start_time=1000 + number // 2).info.run_id
        client.log_metric(run_id, "n", number)
        rows = [stress_row | {"id": f"s{number}"}]
        client.log_text(run_id, encode_lines(rows)[0], ledger.TABLE_STRESS)
        client.set_terminated(run_id, "FAILED" if number == 1 else "FINISHED")
        made.append((1000 + number // 2, run_id, number))
    client.delete_run(made[4][1])
    runs = list(read_runs("paged", server_uri))
    found = [(run.start_time_ms, run.run_id, run.metrics["n"]) for run in runs]
    assert found == sorted(made)
    for run in runs:
        assert run.stress_table is not None
        assert [row.id for row in run.stress_table] == [f"s{run.metrics['n']:.0f}"]
    assert sorted(run.status for run in runs) == ["FAILED"] + ["FINISHED"] * 7
    assert [run.run_id for run in runs if run.lifecycle == "deleted"] == [made[4][1]]
    assert [run.run_id for run in list_runs("paged", server_uri)] == [run.run_id for run in runs]
    active = [run.run_id for run in runs if run.lifecycle == "active"]
    assert [run.run_id for run in read_runs("paged", server_uri, view_all=False)] == active
    chosen = [made[7][1], made[4][1], made[7][1]]
    assert [run.run_id for run in read_runs(chosen, server_uri)] == [made[4][1], made[7][1]]
    assert latest_run("paged", server_uri).run_id == min(run_id for start, run_id, _ in made if start == 1003)
    with pytest.raises(UserError, match="'absent' is not in"):
        read_runs("absent", server_uri)


def _values(points: tuple[MetricPoint, ...]) -> list[float]:
    return [point.value for point in points]


class _Link:
    """A TCP forwarder to the server that can be cut, as a network can; `deaf`, it loses the answers only."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.deaf = False
        self._address = ("127.0.0.1", 0)
        self.mend()
        self.uri = f"http://127.0.0.1:{self._address[1]}"

    def mend(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._target)
                self._open += [inner, outer]
                for pair in ((inner, outer, False), (outer, inner, True)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.deaf:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)


@pytest.fixture
def link(server_uri: str) -> Iterator[_Link]:
    link = _Link(server_uri)
    yield link
    link.cut()


@pytest.mark.parametrize("how", ["cut", "deaf"])
def test_an_outage_leaves_no_gap_and_no_double(
    link: _Link, server_uri: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut: nothing reaches the server. Deaf: everything does, and is sent again because no answer comes back."""
    with RunWriter(link.uri, f"outage {how}") as run:
        run.log_metrics({"x": -1.0}, 0)
        run.flush()
        link.cut() if how == "cut" else setattr(link, "deaf", True)
        for step in range(1, 300):
            run.log_metrics({"x": float(step), "y": 2.0 * step}, step)
        run.log_json("a/rows.json", [1, 2, 3])
        run.set_tags({"cedkv.kept": "last"})
        run.secure()
        with pytest.raises(TrackingError, match="600 records wait in"):
            run._outbox.flush(3)
        assert "does not answer" in caplog.text
        link.mend() if how == "cut" else setattr(link, "deaf", False)
        for step in range(300, 400):
            run.log_metrics({"x": float(step)}, step)
    record = read_run(run.run_id, server_uri)
    assert (record.status, record.tags["cedkv.kept"]) == ("FINISHED", "last")
    history = metric_history(run.run_id, ["x", "y"], server_uri)
    assert [(p.step, p.value) for p in history["x"]] == [(0, -1.0), *((n, float(n)) for n in range(1, 400))]
    assert [p.step for p in history["y"]] == list(range(1, 300))
    assert [file.path for file in open_client(server_uri).list_artifacts(run.run_id, "a")] == ["a/rows.json"]
    assert not list(spool_of(run.run_id, link.uri).parent.iterdir()), "nothing waits"


def test_a_store_that_is_away_at_the_end_is_sent_the_rest_by_sync(link: _Link, server_uri: str) -> None:
    writer = RunWriter(link.uri, "away at the end", close_timeout_s=1.0)

    def loop() -> None:
        with writer as run:
            run.log_metrics({"x": 1.0}, 0)
            run.flush()
            link.cut()
            run.log_metrics({"x": 2.0, "y": 1.0}, 1)
            run.log_text("gone.txt", "not yet")

    with pytest.raises(TrackingError, match=r"3 records wait in .*`cedkv sync` sends them"):
        loop()
    record = read_run(writer.run_id, server_uri)
    assert (record.status, dict(record.metrics)) == ("RUNNING", {"x": 1.0}), (
        "no gate takes a run that has not ended"
    )
    with pytest.raises(UserError):
        list(sync(link.uri))
    link.mend()
    assert [found.state for found in sync(server_uri)] == ["elsewhere"]
    ((found),) = sync(link.uri)
    assert (found.run_id, found.state, found.records, found.status) == (
        writer.run_id,
        "sent",
        4,
        "FINISHED",
    )
    assert not list(sync(link.uri))
    record = read_run(writer.run_id, server_uri)
    assert (record.status, dict(record.metrics)) == ("FINISHED", {"x": 2.0, "y": 1.0})
    assert [file.path for file in open_client(server_uri).list_artifacts(writer.run_id)] == ["gone.txt"]


def test_a_signal_ends_the_wait_for_a_store_that_is_away(link: _Link, server_uri: str) -> None:
    writer = RunWriter(link.uri, "away and interrupted", close_timeout_s=60.0)

    def loop() -> None:
        with writer as run:
            link.cut()
            run.log_metrics({"x": 2.0}, 1)
            threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    begun = time.monotonic()
    with pytest.raises(TrackingError, match="1 records wait in"):
        loop()
    assert time.monotonic() - begun < 30
    link.mend()
    ((found),) = sync(link.uri)
    assert (found.state, found.status) == ("sent", "FINISHED")


def test_verdicts_and_ledgers_go_through_a_server_too(server_uri: str, tmp_path: Path) -> None:
    with RunWriter(server_uri, "judged elsewhere") as run:
        run.log_text(ledger.CONFIG_RESOLVED, "phase3: {}\n")
    said = {
        "tags": {ledger.TAG_VERDICT: "fail"},
        "metrics": {"gate/a": 1.0},
        "files": {"gate_report.md": "No.\n"},
    }
    assert write_back(run.run_id, server_uri, **said)
    assert not write_back(run.run_id, server_uri, **said)
    record = read_run(run.run_id, server_uri)
    assert (record.tags[ledger.TAG_VERDICT], record.metrics["gate/a"]) == ("fail", 1.0)
    (copied,) = fetch(run.run_id, ["gate_report.md"], server_uri, tmp_path)
    assert copied.read_text() == "No.\n"
    with pytest.raises(UserError, match=r"holds no artifact 'memory/memory\.json'"):
        fetch(run.run_id, [ledger.MEMORY_META], server_uri, tmp_path)
    enter_explored(run.experiment_id, run.run_id, run.start_time_ms, server_uri)
    assert read_ledgers(run.experiment_id, server_uri).explored == {run.run_id: run.start_time_ms}
