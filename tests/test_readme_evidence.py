"""The README's first screen is what logged runs proved, and they are runs of configs/base.yaml as it is."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from cedkv.config import EMBEDDED
from cedkv.models.load import load_model

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evidence, peers = script("readme_evidence"), script("readme_peers")

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


@pytest.mark.parametrize("name", sorted(peers.NUMBERS))
def test_the_tables_of_peers_are_what_was_measured(name):
    content = json.loads(peers.NUMBERS[name].read_text())
    assert peers.written(README, name, content) == README
    phase3 = next(row for row in content["results"] if row["method"] == "phase3")
    phase3["metrics"]["off_delta_p99_stress"] *= 2
    assert peers.written(README, name, content) != README
