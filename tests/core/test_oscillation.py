"""Oscillation of a dual trace, against numpy and known signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.oscillation import BAND, oscillation

FINITE = st.floats(0, 50, allow_nan=False)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=60))
def test_it_is_what_numpy_says(rows):
    lambdas, p99s = zip(*rows, strict=True)
    found = oscillation(lambdas, p99s, threshold=0.05, update_every=5)
    last = np.array(lambdas[len(lambdas) - math.ceil(len(lambdas) / 3) :])
    assert found.std == pytest.approx(last.std(), abs=1e-9)
    assert found.peak_to_peak == pytest.approx(np.ptp(last), abs=1e-12)
    assert found.violation == pytest.approx(5 * np.clip(np.array(p99s) - 0.05, 0, None).sum())
    assert all(abs(value - lambdas[-1]) <= BAND for value in lambdas[found.settling_tick :])
    assert found.settling_tick == 0 or abs(lambdas[found.settling_tick - 1] - lambdas[-1]) > BAND


def test_a_sine_that_dies_out_settles_where_its_envelope_meets_the_band():
    trace = [3 + 2 * math.exp(-tick / 10) * math.cos(tick) for tick in range(90)]
    found = oscillation(trace, [0.0] * 90, threshold=0.05, update_every=5)
    assert found.peak_to_peak < 0.01
    assert 10 * math.log(2 / BAND) - 4 < found.settling_tick <= 10 * math.log(2 / BAND) + 1
    ringing = oscillation(
        [3 + 2 * math.cos(tick) for tick in range(90)], [0.0] * 90, threshold=0, update_every=5
    )
    assert ringing.peak_to_peak == pytest.approx(4, abs=0.05)
    assert ringing.std == pytest.approx(2 / math.sqrt(2), abs=0.05)


def test_what_was_not_measured_is_no_violation():
    found = oscillation([1.0, 1.0], [math.nan, 1.05], threshold=0.05, update_every=5)
    assert found.violation == pytest.approx(5.0)


@pytest.mark.parametrize(("lambdas", "p99s"), [([], []), ([1.0], [])])
def test_nothing_to_judge_is_an_error(lambdas, p99s):
    with pytest.raises(ValueError, match="per update"):
        oscillation(lambdas, p99s, threshold=0.05, update_every=5)
