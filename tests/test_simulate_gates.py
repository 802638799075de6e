"""The simulation of the gates: it agrees with the binomial distribution, and what the README says of it holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate_gates.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("simulate_gates", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_simulation_agrees_with_the_exact_chances(script):
    generator = np.random.default_rng(0)
    for gate in script.GATES:
        for repeats in (1, 5):
            found = script.simulate(gate, 0.01, repeats, generator)
            assert found == pytest.approx(script.exact(gate, 0.01, repeats), abs=0.02)


def test_five_openings_of_the_sealed_set_keep_the_promise_and_five_runs_of_the_point_gate_do_not(script):
    point, bound, sealed = script.GATES
    assert [gate.most() for gate in script.GATES] == [20, 12, 61]
    assert script.exact(sealed, 0.01, 5) <= script.DELTA
    assert script.exact(bound, 0.01, 1) <= script.DELTA < script.exact(bound, 0.01, 5)
    assert script.exact(point, 0.011, 5) == pytest.approx(0.87, abs=0.01)
    assert script.exact(sealed, 0.011, 5) == pytest.approx(0.003, abs=0.001)
