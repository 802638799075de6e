"""MLflow's own pages on a store: started on this machine only, with links to where a reviewer wants to be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from cedkv.core.errors import UserError
from cedkv.tracking.names import check_experiment
from cedkv.tracking.store import is_sqlite, open_client, shown

HOST: Final = "127.0.0.1"
_QUIET: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""One reviewer needs no queue of jobs: five processes less, and a start in half the time."""

START_SECONDS: Final = 180  # a busy machine takes its time to import MLflow


def links(base: str, experiment: str, uri: str) -> dict[str, str]:
    """Addresses of an experiment's pages: its runs, their comparison as charts, their memories.

    Raises:
        UserError: no such experiment or store.
    """
    found = open_client(uri).get_experiment_by_name(check_experiment(experiment))
    if found is None:
        raise UserError(
            f"experiment {experiment!r} is not in {shown(uri)}; train a run, or name another with --experiment"
        )
    page = f"{base.rstrip('/')}/#/experiments/{found.experiment_id}"
    training = "workflowType=machine_learning"  # the layout for training; that for chats is MLflow's default
    return {
        "runs": f"{page}/runs?{training}",
        "compare": f"{page}/runs?compareRunsMode=CHART&{training}",
        "memories": f"{page}/models?{training}",
    }


@contextmanager
def serving(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on a local store, answering when the block begins and gone when it ends.

    Raises:
        UserError: the port is taken, or the server did not start.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} of {HOST} is taken; name another with --port") from None
    # A file, since a pipe that nobody reads would stop the server one day; and a group of its own, since MLflow starts
    # workers, and all of them are to end together.
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(  # noqa: S603 - this interpreter, and a port and URI that were checked
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--backend-store-uri",
                uri,
                "--host",
                HOST,
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            env=os.environ | _QUIET,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # In a group of its own the server hears neither a SIGTERM nor a closed terminal: it would be left behind. What
        # this process was told to ignore (nohup) it goes on ignoring.
        heard = [
            kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) is not signal.SIG_IGN
        ]
        before = {kind: signal.signal(kind, _leave) for kind in heard}
        try:
            _wait(server, port, said)
            yield server
        finally:
            # A second Ctrl-C would cut the ending short.
            impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)
            _end(server)
            for kind, handler in (*before.items(), (signal.SIGINT, impatient)):
                signal.signal(kind, handler)


def show(uri: str, experiment: str, port: int, say: Callable[[str], None]) -> None:
    """Serve a local store's pages until Ctrl-C; of a store that is a server, say where its pages are."""
    if not is_sqlite(uri):
        if not uri.startswith(("http://", "https://")):
            raise UserError(
                f"{shown(uri)} is a database server: its pages are those of the MLflow server in front of it; name that "
                "with --tracking-uri http://..."
            )
        _say_links(links(uri, experiment, uri), say)
        return
    found = links(f"http://{HOST}:{port}", experiment, uri)  # a store that is not there is refused first
    with serving(uri, port) as server:
        _say_links(found, say)
        say("Ctrl-C ends it")
        server.wait()
        raise UserError(f"MLflow's server ended by itself with status {server.returncode}; start it again")


def _say_links(found: dict[str, str], say: Callable[[str], None]) -> None:
    for name, address in found.items():
        say(f"{name:9} {address}")


def _leave(*_: object) -> None:
    """End the block as Ctrl-C does."""
    raise KeyboardInterrupt


def _wait(server: subprocess.Popen[bytes], port: int, said: IO[bytes]) -> None:
    # Past any proxy of the environment, which does not reach this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            said.seek(0)
            told = said.read().decode(errors="replace").strip()
            raise UserError(
                f"MLflow's server did not start: {told.splitlines()[-1] if told else 'it said nothing'}"
            )
        try:
            with direct.open(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(
        f"MLflow's server did not answer within {START_SECONDS} seconds; start it by `mlflow server` to see why"
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, kind)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        else:
            return
