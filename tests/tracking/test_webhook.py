"""Warnings reach a real HTTP server, and one that does not answer never holds a run up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking.webhook import MOST_WAITING, VARIABLE, Webhook


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, str]]]]:
    got: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(64)
        yield f"http://127.0.0.1:{holder.getsockname()[1]}/"


def test_what_is_sent_arrives_in_order_before_the_end(receiver):
    url, got = receiver
    complaints: list[str] = []
    with Webhook(url, complaints.append) as hook:
        for step in range(5):
            hook.send({"step": step})
    assert got == [{"step": step} for step in range(5)]
    assert complaints == []


def test_a_server_that_does_not_answer_costs_no_time_and_one_line(silent):
    complaints: list[str] = []
    hook = Webhook(silent + "secret-token", complaints.append, timeout_s=0.3)
    start = time.perf_counter()
    for step in range(MOST_WAITING + 10):
        hook.send({"step": step})
    assert time.perf_counter() - start < 0.2
    hook.close()
    assert time.perf_counter() - start < 3
    assert len(complaints) == 1
    assert "secret-token" not in complaints[0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "javascript:alert(1)", "http://", "x"])
def test_other_addresses_are_refused_without_being_shown(url):
    with pytest.raises(UserError, match=VARIABLE) as refused:
        Webhook(url, print)
    assert url not in str(refused.value).replace(VARIABLE, "") or url == "x"


def test_a_run_sends_its_warnings(receiver, small_config, store_uri, monkeypatch):
    from cedkv.train.main import run_training

    url, got = receiver
    monkeypatch.setenv(VARIABLE, url)
    config = small_config(
        f"tracking.uri={store_uri}",
        "phase3.candidate.delimiter.mass_cap=1e-4",
        "phase3.train.steps=3",
        "tracking.system_metrics=true",
    )
    run_id = run_training(config, phase=3, progress=False)
    assert any("delimiter mass" in sent["message"] for sent in got)
    assert {sent["run_id"] for sent in got} == {run_id}
    from cedkv.tracking.reader import metric_history

    (memory,) = metric_history(run_id, ["system/process_memory_megabytes"], store_uri).values()
    assert [point.step for point in memory] == [0, 3]
    assert all(50 < point.value < 20_000 for point in memory)
