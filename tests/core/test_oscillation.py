"""Oscillation of a dual trace, against numpy and known signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.dual import DualRule, DualState
from cedkv.core.oscillation import BAND, oscillation, tracking

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


RANGE = {"target": 0.05, "lambda_min": 0.0, "lambda_max": 10.0}
p99 = st.floats(0.0, 1.0).filter(lambda value: value != 0.05)


@given(st.floats(0.5, 9.5), st.lists(p99, min_size=1, max_size=40))
def test_a_lambda_that_stands_still_tracks_nothing(value, p99s):
    assert tracking([value] * len(p99s), p99s, start=value, **RANGE) == 0.0


@given(st.lists(p99, min_size=1, max_size=40), st.floats(0.01, 0.2), st.floats(0.01, 0.1))
def test_without_an_average_the_dual_always_goes_where_the_p99_asks(p99s, eta, clip):
    """And what is reported is the mean of its steps, where no bound is met."""
    rule = DualRule(eta, 0.0, 5, 0.0, 10.0, clip, 0.05)
    state, lambdas = DualState(5.0), []
    for value in p99s:
        state = rule.update(state, value)
        lambdas.append(state.lambda_off)
    steps = np.abs(np.diff([5.0, *lambdas]))
    assert tracking(lambdas, p99s, start=5.0, **RANGE) == pytest.approx(steps.mean(), abs=1e-12)


@given(st.lists(st.tuples(p99, st.floats(-0.2, 0.2)), min_size=1, max_size=40))
def test_a_lambda_that_goes_the_other_way_counts_as_much_against(moves):
    ups = np.cumsum([move for _, move in moves])
    p99s = [value for value, _ in moves]
    there, back = ([5.0 + sign * up for up in ups] for sign in (1, -1))
    found = tracking(there, p99s, start=5.0, target=0.05, lambda_min=-100.0, lambda_max=100.0)
    other = tracking(back, p99s, start=5.0, target=0.05, lambda_min=-100.0, lambda_max=100.0)
    assert found == pytest.approx(-other, abs=1e-9)


def test_what_a_bound_forbids_is_not_asked_for():
    blocked = tracking([10.0, 10.0], [0.2, 0.2], start=10.0, **RANGE)
    assert math.isnan(blocked)
    assert math.isnan(tracking([0.0, 0.0], [0.01, 0.01], start=0.0, **RANGE))
    # Of the three, the first leaves the bound, the second has reached it, the third may not cross it.
    assert tracking([0.3, 0.0, 0.0], [0.2, 0.01, 0.01], start=0.0, **RANGE) == pytest.approx(0.3)


def test_what_was_not_measured_asks_for_nothing():
    assert tracking([1.0, 1.2], [math.nan, 0.2], start=0.9, **RANGE) == pytest.approx(0.2)
    assert math.isnan(tracking([1.0], [math.nan], start=0.9, **RANGE))
    with pytest.raises(ValueError, match="shorter"):
        tracking([1.0, 1.0], [0.2], start=0.9, **RANGE)
