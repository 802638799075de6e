from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.bench.fit import exponent
from cedkv.bench.timing import Spread, interleaved


def test_rivals_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []
    seconds = interleaved({name: lambda name=name: order.append(name) for name in "ABC"}, 3)
    assert "".join(order) == "ABC" * 4
    assert {name: len(spread.values) for name, spread in seconds.items()} == {"A": 3, "B": 3, "C": 3}
    assert all(value >= 0 for spread in seconds.values() for value in spread.values)


def test_a_rival_that_times_itself_is_believed_and_the_clock_is_read_after_the_device() -> None:
    waits: list[int] = []
    seconds = interleaved({"own": lambda: 7.5}, 2, lambda: waits.append(1))
    assert seconds["own"].values == (7.5, 7.5)
    assert len(waits) == 6


def test_median_and_quartiles() -> None:
    spread = Spread((4.0, 1.0, 3.0, 2.0, 100.0))
    assert spread.median == 3.0
    assert spread.quartiles == (2.0, 4.0)
    assert Spread((2.0,)).quartiles == (2.0, 2.0)
    assert spread.rate(12).median == 4.0
    assert spread.times(1000).median == 3000.0


@given(
    st.floats(-3, 3),
    st.floats(0.01, 100),
    st.lists(st.integers(1, 4096), min_size=3, max_size=8, unique=True),
)
def test_the_exponent_of_a_power_law_is_found_without_error(
    power: float, factor: float, x: list[int]
) -> None:
    found = exponent(x, [factor * value**power for value in x])
    assert math.isclose(found.value, power, abs_tol=1e-6)
    assert found.error < 1e-5


def test_the_standard_error_is_that_of_ordinary_least_squares() -> None:
    # Slope and error by numpy.polyfit(log x, log y, 1, cov=True) for these numbers.
    import numpy as np

    x, y = np.array([1.0, 4.0, 16.0, 64.0]), np.array([1.0, 5.0, 13.0, 80.0])
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    found = exponent(x.tolist(), y.tolist())
    assert found.value == pytest.approx(slope)
    assert found.error == pytest.approx(covariance[0, 0] ** 0.5)


def test_two_points_have_no_error_and_one_has_no_exponent() -> None:
    assert math.isnan(exponent([1, 2], [1, 4]).error)
    with pytest.raises(ValueError, match="two different x"):
        exponent([2, 2], [1, 4])
    with pytest.raises(ValueError, match="positive numbers"):
        exponent([1, 2], [0, 4])
