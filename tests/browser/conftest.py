"""A real browser, a real app in a process of its own, and a real store with real runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from cedkv.config import Config

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
HOSTILE = "<script>alert(1)</script> javascript:x \u202egnp.exe 🙂"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no chromium on the path: apt-get install chromium"))


@dataclass(frozen=True)
class Shown:
    """Where the app answers, and the runs it shows by what they are."""

    url: str
    store: str
    runs: dict[str, str]

    def page(self, name: str, *runs: str) -> str:
        return f"{self.url}/{name}?runs={','.join(self.runs[run] for run in runs)}"


@pytest.fixture(scope="session")
def shown(
    store_template: Path, tmp_path_factory: pytest.TempPathFactory, small_config: Callable[..., Config]
) -> Iterator[Shown]:
    """The dashboard over a baseline, a trained run, and one that calls itself something hostile."""
    from cedkv.train.main import run_training

    folder = tmp_path_factory.mktemp("browser")
    database = folder / "mlflow.db"
    database.write_bytes(store_template.read_bytes())
    store = f"sqlite:///{database}"
    runs = {
        name: run_training(
            small_config(f"tracking.uri={store}", f"tracking.run_name={called}", *more, phase=phase),
            phase=phase,
        )
        for name, called, phase, more in (
            ("baseline", "the baseline", 2, ()),
            ("trained", "the trained one", 3, ()),
            ("hostile", f'"{HOSTILE}"', 3, ("phase3.train.steps=2",)),
        )
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "-m", "cedkv", "dashboard", "--port", str(port), "--tracking-uri", store],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/", app)
        yield Shown(f"http://127.0.0.1:{port}", store, runs)
    finally:
        app.terminate()
        app.communicate(timeout=30)


def _wait_for(url: str, app: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert app.poll() is None, app.stderr.read().decode() if app.stderr else ""
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile. Afterwards nothing was asked for outside this machine, and the console is clean."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}") or dialog.dismiss())
    opened.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith(("http://127.0.0.1", "data:", "blob:", "file:"))
            else complaints.append(f"asked for {asked.url}")
        ),
    )
    opened.set_default_timeout(30_000)
    yield opened
    context.close()
    assert complaints == []
