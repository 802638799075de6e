from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cedkv.tracking.record import OnRow, StressRow


@pytest.fixture
def stress_row() -> dict[str, Any]:
    row = StressRow("s0", "Opposite of hot?", "opposites", 0.031, "d1", 0.002, "d0", " cold", " cold")
    return dataclasses.asdict(row)


@pytest.fixture
def on_row() -> dict[str, Any]:
    row = OnRow("o0", "d1", "Wo?", " Zürich\u2028서울", 2, False, True, True, -9.5, -0.2, -0.1, 0.1, 4.0, 3.5)
    return dataclasses.asdict(row)


@pytest.fixture(scope="session")
def server_uri(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real ``mlflow server`` on a free local port that stores artifacts for its clients."""
    folder = tmp_path_factory.mktemp("server")
    database = folder / "mlflow.db"
    database.write_bytes(store_template.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    quick = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | quick, start_new_session=True
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}", server, folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def wait_until_up(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):  # noqa: S310 (a local address)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the MLflow server did not start:\n{log.read_text()[-2000:]}")
