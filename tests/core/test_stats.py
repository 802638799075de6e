"""Order statistics against scipy and against the binomial distribution itself."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, quantile_test

from cedkv.core.stats import (
    clopper_pearson_upper,
    exceedances,
    order_statistic_quantile,
    upper_bound,
    upper_bound_rank,
)

samples = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(samples, st.integers(1, 100))
def test_the_quantile_is_numpys_inverted_cdf(values, percent):
    q = percent / 100
    place = -(-percent * len(values) // 100)  # exact; numpy's own q * n is rounded
    assert order_statistic_quantile(values, q) == sorted(values)[place - 1]
    if (percent * len(values)) % 100:
        assert order_statistic_quantile(values, q) == np.quantile(values, q, method="inverted_cdf")


def test_levels_are_read_as_decimals():
    assert math.ceil(0.07 * 100) == 8  # what floating point makes of it
    assert order_statistic_quantile(range(1, 101), 0.07) == 7
    assert order_statistic_quantile(range(1, 2049)) == 2028  # ceil(0.99 * 2048)


def test_at_full_scale_the_bound_is_the_13th_largest():
    values = np.random.default_rng(3407).exponential(size=2048)
    assert upper_bound_rank(2048) == 2048 - 12
    assert upper_bound(values) == np.sort(values)[-13]


@pytest.mark.parametrize("n", [298, 299, 300, 473, 500, 1000, 2048, 8192, 100_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_rank_is_the_smallest_with_the_confidence(n, confidence):
    ranks = np.arange(1, n + 1)
    enough = ranks[binom.cdf(ranks - 1, n, 0.99) >= confidence]
    assert upper_bound_rank(n, 0.99, confidence) == (enough[0] if len(enough) else None)


@pytest.mark.parametrize("n", [300, 512, 2048])
def test_the_bound_is_the_one_of_scipys_quantile_test(n):
    values = np.random.default_rng(n).lognormal(size=n)
    interval = quantile_test(values, q=0, p=0.99, alternative="less").confidence_interval(0.95)
    assert upper_bound(values) == interval.high


def test_298_samples_bound_nothing_and_299_do():
    """0.99 ** 299 < 0.05 <= 0.99 ** 298, in exact arithmetic."""
    assert Fraction(99, 100) ** 299 < Fraction(1, 20) <= Fraction(99, 100) ** 298
    assert upper_bound_rank(298) is None
    assert upper_bound(range(298)) == math.inf
    assert upper_bound_rank(299) == 299


@given(st.integers(299, 3000), st.integers(0, 99))
def test_the_bound_is_never_below_the_quantile_and_is_measured(n, seed):
    values = np.random.default_rng(seed).lognormal(size=n).tolist()
    bound = upper_bound(values)
    assert bound in values
    assert bound >= order_statistic_quantile(values)


@given(st.integers(0, 60), st.floats(0.01, 0.2))
def test_the_bound_passes_a_limit_exactly_when_at_most_12_of_2048_exceed_it(over, limit):
    values = [0.0] * (2048 - over) + [limit * 1.5] * over
    assert exceedances(values, limit) == over
    assert (upper_bound(values) <= limit) == (over <= 12)


def test_the_bound_covers_the_true_quantile_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = -math.log(0.01)  # of the exponential distribution
    covered = [upper_bound(rng.exponential(size=1000)) >= truth for _ in range(2000)]
    assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("function", [order_statistic_quantile, upper_bound, lambda v: exceedances(v, 0.1)])
def test_nan_and_nothing_are_refused(function):
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        function([0.1, math.nan, 0.2])
    with pytest.raises(ValueError, match="empty"):
        function([])


@pytest.mark.parametrize("q", [0.0, -0.1, 1.01, math.nan])
def test_an_impossible_level_is_refused(q):
    with pytest.raises(ValueError, match="q is"):
        order_statistic_quantile([1.0], q)
    with pytest.raises(ValueError, match="q is"):
        upper_bound_rank(10, q)


def test_an_impossible_sample_size_is_refused():
    with pytest.raises(ValueError, match="n is 0"):
        upper_bound_rank(0)


@given(st.integers(1, 20_000), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_rate_bound_is_scipys_exact_interval(n, share, confidence):
    exceeded = round(share * n)
    interval = binomtest(exceeded, n, alternative="less").proportion_ci(confidence, method="exact")
    assert clopper_pearson_upper(exceeded, n, confidence) == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize(("n", "confidence"), [(2048, 0.95), (8192, 0.99), (400, 0.95)])
def test_the_rate_bound_and_the_bound_of_the_quantile_are_one_statement(n, confidence):
    """At most 1 % drift over tau, or the p99 is at most tau: both hold for the same numbers of exceedances."""
    allowed = n - upper_bound_rank(n, 0.99, confidence)
    for exceeded in (allowed, allowed + 1):
        values = [1.0] * exceeded + [0.0] * (n - exceeded)
        assert (clopper_pearson_upper(exceeded, n, confidence) <= 0.01) == (exceeded == allowed)
        assert (upper_bound(values, 0.99, confidence) <= 0.5) == (exceeded == allowed)


@pytest.mark.parametrize(
    ("exceeded", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)]
)
def test_what_is_no_count_has_no_rate(exceeded, n, confidence):
    with pytest.raises(ValueError, match=r"give 0 <=|lies strictly"):
        clopper_pearson_upper(exceeded, n, confidence)
