"""Correlations against scipy, and what a relative change is."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.proxy import pearson_of_logs, relative_change, spearman

POSITIVE = st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-1e6, 1e6)), min_size=3, max_size=60))
def test_spearman_is_scipys_ties_and_all(rows):
    a, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    if a.unique().numel() == 1 or b.unique().numel() == 1:
        assert math.isnan(spearman(a, b))
        return
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=3, max_size=60))
def test_pearson_of_logs_is_scipys(rows):
    a, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    if any((x.log() - x.log().mean()).abs().max() < 1e-6 for x in (a, b)):
        return
    assert pearson_of_logs(a, b) == pytest.approx(scipy.stats.pearsonr(a.log(), b.log()).statistic, abs=1e-7)


def test_what_cannot_be_ranked_gives_no_number():
    ramp = torch.arange(5.0)
    assert math.isnan(spearman(ramp, torch.tensor([0.0, 1.0, math.nan, 3.0, 4.0])))
    assert math.isnan(spearman(ramp, torch.tensor([0.0, 1.0, math.inf, 3.0, 4.0])))
    assert math.isnan(spearman(ramp, torch.ones(5)))
    assert math.isnan(pearson_of_logs(ramp, torch.zeros(5)))
    assert pearson_of_logs(ramp, ramp) == pytest.approx(1.0)  # the pair with 0 is left out
    assert spearman(ramp, -ramp) == pytest.approx(-1.0)


@given(st.integers(0, 100), st.floats(0.1, 10))
def test_a_relative_change_is_zero_for_equals_and_has_no_unit(seed, factor):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, 4, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    assert (relative_change(b, b) == 0).all()
    found = relative_change(a, b)
    torch.testing.assert_close(found, ((a - b) ** 2).sum((1, 2)) / (b**2).sum((1, 2)))
    torch.testing.assert_close(relative_change(factor * a, factor * b), found)
