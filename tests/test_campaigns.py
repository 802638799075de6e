"""The campaigns of scripts/, a little of each; they are run whole by hand, and their tables are in LOG.md."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_campaign", SCRIPTS / "fuzz_campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_input_is_read_or_refused(fuzz, capsys):
    assert fuzz.main(seed=7, inputs=300) == 0
    table = capsys.readouterr().out
    assert table.count("\n| ") == 1 + len(fuzz.TARGETS)
    assert all(line.endswith("| 0 |") for line in table.splitlines()[2:])


def test_the_campaign_sees_a_traceback_and_what_is_taken_for_good(fuzz, capsys, monkeypatch):
    def broken(rng, folder):
        while True:
            yield lambda: 1 / 0

    def gullible(rng, folder):
        while True:
            yield lambda: (_ for _ in ()).throw(fuzz.AcceptedError("taken for good"))

    monkeypatch.setattr(fuzz, "TARGETS", {"broken": (broken, 0.5), "gullible": (gullible, 0.5)})
    assert fuzz.main(seed=0, inputs=10) == 1
    said = capsys.readouterr().out
    assert "5 x broken: ZeroDivisionError" in said
    assert "5 x gullible: AcceptedError" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_survive_a_few_bad_days():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "fault_campaign.py"), "--seed", "5", "--kills", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 of 14 as they should be" in done.stdout
