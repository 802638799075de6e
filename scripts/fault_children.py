"""Runs in processes of their own that are sabotaged, and what became of them: the tools of `fault_campaign.py`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from cedkv import ledger
from cedkv.cli import main
from cedkv.tracking.backend import MlflowClient
from cedkv.tracking.reader import read_run, read_traces
from cedkv.train import main as training  # noqa: F401 - children find it imported

Sabotage = Callable[[], object]


def nothing() -> None:
    """Let it be."""


class Child:
    """`cedkv` with some arguments, in a process of its own that is sabotaged first."""

    def __init__(self, folder: Path, arguments: list[str], sabotage: Sabotage = nothing) -> None:
        self.out = Path(tempfile.mkstemp(dir=folder, suffix=".out")[1])
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._run(arguments, sabotage))

    def _run(self, arguments: list[str], sabotage: Sabotage) -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(self.out, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        try:
            sabotage()
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:  # noqa: BLE001
            sys.stderr.write(f"Traceback of {error!r}\n")
            code = 1
        sys.stdout.flush()
        return code

    def wait_for(self, text: str) -> bool:
        """Until it says so; False where it ended before."""
        while text not in self.text:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return text in self.text
            time.sleep(0.02)
        return True

    def wait(self, seconds: float = 240.0) -> int:
        """Its exit status."""
        if not hasattr(self, "code"):
            end = time.monotonic() + seconds
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.code = os.waitstatus_to_exitcode(status)
                    break
                if time.monotonic() > end:
                    os.kill(self.pid, signal.SIGKILL)
                    self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                    raise TimeoutError(self.text[-2000:])
                time.sleep(0.02)
        return self.code

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.out.read_text(errors="replace")


def asked(question: Callable[[], Any]) -> Any:
    """The answer of a child: this process opens no store, whose connections its children would share."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            os.write(write, json.dumps(question()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(told) if told else None


def snapshot(run_id: str, uri: str) -> dict[str, str]:
    """Hashes of everything a run logged that does not depend on the clock."""

    def look() -> dict[str, str]:
        client = MlflowClient(uri)
        names = sorted(
            n for n in client.get_run(run_id).data.metrics if not n.startswith(("perf/", "system/"))
        )
        history = {
            name: sorted((p.step, repr(p.value)) for p in client.get_metric_history(run_id, name))
            for name in names
        }
        record, traces = read_run(run_id, uri), read_traces(run_id, uri)
        with tempfile.TemporaryDirectory() as folder:
            memory = Path(client.download_artifacts(run_id, ledger.MEMORY_TENSORS, folder)).read_bytes()
        parts = {
            "history": history,
            "traces": traces,
            "tables": [repr(record.stress_table), repr(record.on_table)],
            "memory": sha256(memory).hexdigest(),
            "status": record.status,
        }
        return {
            name: sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
            for name, part in parts.items()
        }

    return asked(look) or {"nothing": "could not be read"}


def runs_in(uri: str) -> list[tuple[str, str]]:
    """Id and status of every run, oldest first."""

    def look() -> list[tuple[str, str]]:
        client = MlflowClient(uri)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return [
            (run.info.run_id, run.info.status) for run in client.search_runs(ids, order_by=["start_time ASC"])
        ]

    return [tuple(pair) for pair in asked(look) or []]


# ------------------------------------------------------------------------------------------------------------ sabotages
def patched(target: str, wrap: Callable[[Callable[..., Any], int], Callable[..., Any]]) -> None:
    """Replace `module:name` or `module:Class.name`; `wrap` gets the original."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrap(getattr(owner, name), 0))


def kill_at(target: str, number: int, behind: bool) -> Sabotage:
    """SIGKILL at a call of `target`, before it or behind it."""

    def wrap(original: Callable[..., Any], _: int) -> Callable[..., Any]:
        calls = [0]

        def called(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*args, **kwargs)
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return called

    return lambda: patched(target, wrap)


def at_step(number: int, action: Callable[[], object]) -> Sabotage:
    """Do something when a step begins."""

    def wrap(original: Callable[..., Any], _: int) -> Callable[..., Any]:
        def called(self: Any, step: int) -> Any:
            if step == number:
                action()
            return original(self, step)

        return called

    return lambda: patched("cedkv.train.loop:Trainer._step", wrap)


def by_the_clock(seconds: float) -> Sabotage:
    """SIGKILL so many seconds after step 6 began, wherever that is."""
    return at_step(6, lambda: threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start())


# ------------------------------------------------------------------------------------------------------------- the store
class Server:
    """A real `mlflow server` that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        line += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        line += ["--artifacts-destination", str(self.folder / "served")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                line, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True, cwd=self.folder
            )
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        raise SystemExit("the server does not start")

    def kill(self) -> None:
        """SIGKILL, to all of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
