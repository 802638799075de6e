"""MLflow's own pages, as `cedkv ui` starts them: what a reviewer finds on a run, and where runs are compared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.slow  # MLflow's server takes its time, and its pages are not ours


@pytest.fixture(scope="module")
def addresses(shown) -> Iterator[dict[str, str]]:
    """The addresses that `cedkv ui` prints, served as long as the tests of this file run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ui = subprocess.Popen(
        [sys.executable, "-m", "cedkv", "ui", "--port", str(port), "--tracking-uri", shown.store],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    found = {}
    for line in ui.stdout or ():
        name, _, address = line.strip().partition(" ")
        found[name] = address.strip()
        if name == "Ctrl-C":
            break
    yield found
    ui.terminate()
    ui.communicate(timeout=60)


@pytest.fixture
def tab(browser) -> Iterator:
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.set_default_timeout(60_000)
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))] == []


def test_a_runs_page_has_its_verdict_its_worst_prompts_and_its_data(tab, shown, addresses):
    tab.goto(addresses["runs"].replace("/runs?", f"/runs/{shown.runs['trained']}?"))
    tab.get_by_role("heading", name="the trained one").wait_for()
    tab.get_by_text("Gate A", exact=False).first.wait_for()
    text = tab.locator("body").inner_text()
    for told in ("off_delta_p99_stress", "worst prompts", "tables/off_stress.jsonl", "documents ("):
        assert told in text, told


def test_the_comparison_shows_the_runs_as_charts(tab, addresses):
    tab.goto(addresses["compare"])
    tab.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length > 3")
    text = tab.locator("body").inner_text()
    assert "atom_mass" in text  # metrics are grouped by their prefix
    assert "the trained one" in text
    assert "the baseline" in text
    assert tab.get_by_text("Model training").count() >= 1


def test_memories_are_models(tab, shown, addresses):
    tab.goto(addresses["memories"])
    tab.get_by_text(f"memory-{shown.runs['trained'][:8]}").first.wait_for()
