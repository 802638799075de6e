"""The paired bootstrap against scipy's, and what must hold of it whatever the values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from cedkv.core.bootstrap import quantile_reduction_interval

positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200)


def p99(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.quantile(values, 0.99, axis=axis, method="inverted_cdf")


def test_it_is_the_percentile_interval_of_scipys_paired_bootstrap():
    generator = np.random.default_rng(3407)
    then = generator.lognormal(size=500)
    now = then * generator.uniform(0.3, 0.9, size=500)
    found = quantile_reduction_interval(now, then)
    theirs = bootstrap(
        (now, then),
        lambda a, b, axis: 1 - p99(a, axis) / p99(b, axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.05)
    assert found[0] < 1 - p99(now) / p99(then) < found[1]


@given(positive, st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_a_uniform_change_is_certain(then, factor):
    """Powers of two, so that the product is exact: every resample shows the same reduction."""
    assert quantile_reduction_interval([factor * value for value in then], then) == (1 - factor, 1 - factor)


@given(positive)
def test_the_same_values_give_the_same_interval(then):
    now = then[::-1]
    assert quantile_reduction_interval(now, then) == quantile_reduction_interval(now, then)


def test_a_tail_that_was_zero_cannot_be_reduced():
    assert quantile_reduction_interval([0.0] * 50, [0.0] * 50) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("now", "then"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0]), ([1.0], [math.inf])]
)
def test_what_cannot_be_paired_is_refused(now, then):
    with pytest.raises(ValueError, match=r"needs one of each|is not finite"):
        quantile_reduction_interval(now, then)
