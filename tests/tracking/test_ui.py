"""``cedkv ui``: MLflow's own pages on the store of a real run, and what they show of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cedkv.cli import main
from cedkv.tracking.writer import RunWriter

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(store: str, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cedkv", "ui", "--port", str(port), "--tracking-uri", store],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears,  # noqa: PLW1509 - two calls of signal, nothing else
    )


def _hears() -> None:
    """Whoever runs these tests in the background has Ctrl-C ignored, and so would the command."""
    for kind in (signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)


def lines_until_ready(ui: subprocess.Popen[str]) -> list[str]:
    assert ui.stdout is not None
    told = []
    for line in ui.stdout:
        told.append(line.strip())
        if line.startswith("Ctrl-C"):
            return told
    raise AssertionError(ui.stderr.read() if ui.stderr else "ended")


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, **SLOW), pytest.param(signal.SIGHUP, **SLOW)]
)
def test_it_serves_the_store_on_this_machine_and_leaves_nothing_behind(store_uri, how):
    with RunWriter(store_uri, "cedkv") as run:
        run.log_metrics({"a": 1.0}, 0)
    port = free_port()
    ui = started(store_uri, port)
    try:
        told = lines_until_ready(ui)
        base = f"http://127.0.0.1:{port}/#/experiments/{run.experiment_id}"
        assert f"compare   {base}/runs?compareRunsMode=CHART&workflowType=machine_learning" in told
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert page.status == 200
    finally:
        ui.send_signal(how)
        _, errors = ui.communicate(timeout=60)
    assert (ui.returncode, errors) == (130, "")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server outlived the command")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_an_absent_store_and_an_absent_experiment_are_refused(
    store_uri, taken_port, tmp_path, capsys
):
    with RunWriter(store_uri, "cedkv"):
        pass
    assert main(["ui", "--tracking-uri", store_uri, "--port", str(taken_port)]) == 2
    assert f"port {taken_port} of 127.0.0.1 is taken; name another with --port" in capsys.readouterr().err
    assert main(["ui", "--tracking-uri", store_uri, "--experiment", "other"]) == 2
    assert "experiment 'other' is not in" in capsys.readouterr().err
    assert main(["ui", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("command", ["ui", "dashboard"])
@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_what_is_no_port_is_refused(command, port, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, f"--port={port}"])
    assert f"{port!r} is not a port, 1 to 65535" in capsys.readouterr().err


def test_of_a_server_it_says_where_the_pages_are(server_uri, capsys):
    with RunWriter(server_uri, "cedkv") as run:
        pass
    assert main(["ui", "--tracking-uri", server_uri]) == 0
    assert f"{server_uri}/#/experiments/{run.experiment_id}/runs" in capsys.readouterr().out
