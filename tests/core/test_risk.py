"""CVaR against its linear program, and the properties that define a coherent tail risk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from cedkv.core.risk import cvar

losses = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)
tails = st.floats(0.01, 1.0)


def cvar_by_linear_program(values: list[float], tail_fraction: float) -> float:
    """Rockafellar and Uryasev: minimise t + sum(z) / (alpha n) subject to z >= values - t, z >= 0."""
    n = len(values)
    cost = np.concatenate([[1.0], np.full(n, 1.0 / (tail_fraction * n))])
    above = np.hstack([-np.ones((n, 1)), -np.eye(n)])
    bounds = [(None, None)] + [(0, None)] * n
    solved = linprog(cost, A_ub=above, b_ub=-np.array(values), bounds=bounds)
    assert solved.success
    return float(solved.fun)


def exact(values: list[float], tail_fraction: float) -> float:
    return cvar(torch.tensor(values, dtype=torch.float64), tail_fraction).item()


@given(losses, tails)
def test_it_is_the_value_of_its_linear_program(values, tail_fraction):
    assert exact(values, tail_fraction) == pytest.approx(
        cvar_by_linear_program(values, tail_fraction), abs=1e-6
    )


@given(losses, tails)
def test_it_lies_between_the_mean_and_the_largest(values, tail_fraction):
    risk = exact(values, tail_fraction)
    assert np.mean(values) - 1e-9 <= risk <= max(values) + 1e-9


@given(losses, tails, tails)
def test_a_thinner_tail_is_never_better(values, one, other):
    thin, wide = sorted((one, other))
    assert exact(values, thin) >= exact(values, wide) - 1e-9


@given(losses, tails, st.floats(-50, 50), st.floats(0, 10))
def test_it_moves_with_its_losses(values, tail_fraction, shift, scale):
    risk = exact(values, tail_fraction)
    moved = exact([value * scale + shift for value in values], tail_fraction)
    assert moved == pytest.approx(risk * scale + shift, abs=1e-7)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20), tails)
def test_risks_added_are_no_less_than_the_risk_of_the_sum(pairs, tail_fraction):
    one, other = map(list, zip(*pairs, strict=True))
    both = exact([a + b for a, b in pairs], tail_fraction)
    assert both <= exact(one, tail_fraction) + exact(other, tail_fraction) + 1e-9


def test_the_last_sample_enters_with_the_share_that_is_left():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert exact(values, 0.2) == pytest.approx((7 + 0.4 * 6) / 1.4, abs=1e-12)  # 7 * 0.2 = 1.4
    assert exact(values, 3 / 7) == pytest.approx(6.0, abs=1e-12)
    assert exact(values, 1.0) == pytest.approx(4.0, abs=1e-12)
    assert exact(values, 0.01) == 7.0


@given(losses, tails)
def test_gradients_are_the_weights_and_sum_to_one(values, tail_fraction):
    tensor = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    cvar(tensor, tail_fraction).backward()
    weights = tensor.grad
    cap = 1 / (len(values) * tail_fraction)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-12
    assert (weights > 0).sum() == min(math.ceil(len(values) * tail_fraction - 1e-9), len(values)) or cap > 1


def test_gradcheck_where_it_is_differentiable():
    values = torch.tensor([0.3, -1.0, 2.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: cvar(v, 0.3), (values,))


def test_an_infinite_loss_outside_the_tail_does_not_spoil_it():
    assert exact([-math.inf, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert exact([math.inf, 1.0], 0.5) == math.inf
    assert math.isnan(exact([math.nan, 1.0, 2.0], 0.5))


@pytest.mark.parametrize("tail_fraction", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_tail_is_refused(tail_fraction):
    with pytest.raises(ValueError, match="tail_fraction is"):
        cvar(torch.ones(3), tail_fraction)


@pytest.mark.parametrize("values", [torch.ones(0), torch.ones(2, 2), torch.tensor(1.0), torch.tensor([1, 2])])
def test_impossible_values_are_refused(values):
    with pytest.raises(ValueError, match="non-empty floating point"):
        cvar(values, 0.2)
