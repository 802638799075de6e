"""λ_off follows the averaged p99 with clipped steps in a fixed range, checked against a replay of the formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.dual import DualRule, DualState

DEFAULT = {
    "eta": 0.05,
    "ema_beta": 0.9,
    "update_every": 5,
    "lambda_min": 0.0,
    "lambda_max": 10.0,
    "delta_clip": 0.1,
    "threshold": 0.05,
}


def trajectory(p99s: list[float], start: float, **rule: float) -> list[DualState]:
    dual, state, states = DualRule(**(DEFAULT | rule)), DualState(start), []
    for p99 in p99s:
        state = dual.update(state, p99)
        states.append(state)
    return states


def replay(p99s: list[float], start: float, **rule: float) -> tuple[np.ndarray, np.ndarray]:
    """The same in closed form: the average as one weighted sum, λ as a scan over clipped steps, in float64."""
    r = DEFAULT | rule
    beta, raw = np.float64(r["ema_beta"]), np.asarray(p99s, np.float64)
    ages = np.arange(len(raw))[:, None] - np.arange(len(raw))[None, :]
    kernel = np.where(ages >= 0, (1 - beta) * beta ** np.maximum(ages, 0), 0.0)
    kernel[:, 0] = beta ** np.arange(len(raw))  # the first reading starts the average with its full weight
    ema = kernel @ raw
    steps = np.clip(np.float64(r["eta"]) * (ema - r["threshold"]), -r["delta_clip"], r["delta_clip"])
    lambdas, value = [], np.float64(start)
    for step in steps:
        value = np.clip(value + step, r["lambda_min"], r["lambda_max"])
        lambdas.append(value)
    return ema, np.array(lambdas)


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=80),
    st.floats(0, 10),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    st.sampled_from([0.01, 0.05, 1.0]),
)
def test_the_whole_trajectory_is_the_replayed_one(p99s, start, beta, eta):
    states = trajectory(p99s, start, ema_beta=beta, eta=eta)
    ema, lambdas = replay(p99s, start, ema_beta=beta, eta=eta)
    np.testing.assert_allclose([state.p99_ema for state in states], ema, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose([state.lambda_off for state in states], lambdas, rtol=1e-10, atol=1e-10)


def test_three_ticks_by_hand():
    first, second, third = trajectory([0.15, 0.25, 0.05], 2.0)
    assert first.p99_ema == 0.15
    assert second.p99_ema == pytest.approx(0.16)  # 0.9 * 0.15 + 0.1 * 0.25
    assert third.p99_ema == pytest.approx(0.149)
    assert first.lambda_off == pytest.approx(2.005)  # + 0.05 * (0.15 - 0.05)
    assert second.lambda_off == pytest.approx(2.0105)
    assert third.lambda_off == pytest.approx(2.01545)


def test_the_average_moves_lambda_not_the_raw_reading():
    """After a long violation one good reading leaves the average, and so λ, on the way up."""
    *_, before, after = trajectory([1.0] * 20 + [0.0], 2.0)
    assert after.p99_ema == pytest.approx(0.9)
    assert after.lambda_off > before.lambda_off


def test_one_update_never_exceeds_the_clip_in_either_direction():
    (up,) = trajectory([1e6], 2.0)
    assert up.delta == 0.1
    assert up.lambda_off == pytest.approx(2.1)
    (down,) = trajectory([0.0], 2.0, eta=1e6)
    assert down.delta == -0.1
    assert down.lambda_off == pytest.approx(1.9)


def test_lambda_is_kept_in_its_range_and_comes_back_from_its_ends():
    high = trajectory([50.0] * 200, 2.0)
    assert high[-1].lambda_off == 10.0
    low = trajectory([0.0] * 200, 0.01)
    assert low[-1].lambda_off == 0.0
    assert trajectory([0.0] * 200 + [50.0] * 5, 0.01)[-1].lambda_off == pytest.approx(0.5)


def test_lambda_moves_only_every_fifth_step():
    dual = DualRule(**DEFAULT)
    assert [step for step in range(21) if dual.due(step)] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("p99", [float("nan"), float("inf")])
def test_a_reading_that_is_not_finite_leaves_lambda_alone_and_is_counted(p99):
    states = trajectory([0.2, p99, 0.2], 2.0)
    assert states[1].lambda_off == states[0].lambda_off
    assert (states[1].skipped, states[1].skipped_total) == (True, 1)
    assert (states[2].skipped, states[2].skipped_total) == (False, 1)
