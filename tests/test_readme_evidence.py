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
README = evidence.README.read_text()


def test_readme_evidence_and_configuration_fit_together():
    assert evidence.stale(RUNS, README) == []


def test_the_evidence_is_of_the_model_that_ships():
    loaded = load_model(EMBEDDED, device="cpu")
    assert {run["model_fingerprint"] for run in RUNS} == {loaded.fingerprint}


def test_a_key_that_is_new_since_then_counts_unless_it_has_its_default():
    runs = copy.deepcopy(RUNS)
    del runs[0]["config"]["phase3.loss.lambda_on"]  # base.yaml leaves it at its default
    assert evidence.stale(runs, README) == []
    del runs[0]["config"]["phase3.train.gate_lr"]  # base.yaml sets it
    (told,) = evidence.stale(runs, README)
    assert "phase3.train.gate_lr" in told


@pytest.mark.parametrize("what", ["number", "configuration", "dirty"])
def test_what_is_stale_is_found(what):
    runs = copy.deepcopy(RUNS)
    if what == "number":
        runs[0]["numbers"]["off_delta_p99_upper"] *= 1.5
        assert len(evidence.stale(runs, README)) == 1
    elif what == "configuration":
        runs[0]["config"]["phase3.train.steps"] = "90"
        (told,) = evidence.stale(runs, README)
        assert "is not of configs/base.yaml as it is now (phase3.train.steps: 90 then, 100 now)" in told
    else:
        runs[1]["git_dirty"] = "true"
        assert "changed working tree" in evidence.stale(runs, README)[-1]
