"""The README's first screen is what logged runs proved, and they are runs of configs/base.yaml as it is."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest

from cedkv.config import EMBEDDED
from cedkv.models.load import load_model

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("readme_evidence", ROOT / "scripts" / "readme_evidence.py")
assert _spec is not None
assert _spec.loader is not None
evidence = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(evidence)

RUNS = json.loads(evidence.EVIDENCE.read_text())
README, FIGURE = evidence.README.read_text(), evidence.FIGURE.read_text()


def test_readme_figure_evidence_and_configuration_fit_together():
    assert evidence.stale(RUNS, README, FIGURE) == []


def test_the_evidence_is_of_the_model_that_ships():
    loaded = load_model(EMBEDDED, device="cpu")
    assert {run["model_fingerprint"] for run in RUNS} == {loaded.fingerprint}


@pytest.mark.parametrize("what", ["number", "configuration", "dirty"])
def test_what_is_stale_is_found(what):
    runs = copy.deepcopy(RUNS)
    if what == "number":
        runs[0]["numbers"]["off_delta_p99_upper"] *= 1.5
        assert len(evidence.stale(runs, README, FIGURE)) == 2
    elif what == "configuration":
        runs[0]["config_hash"] = "0" * 64
        assert "is not of configs/base.yaml as it is now" in evidence.stale(runs, README, FIGURE)[-1]
    else:
        runs[1]["git_dirty"] = "true"
        assert "changed working tree" in evidence.stale(runs, README, FIGURE)[-1]
