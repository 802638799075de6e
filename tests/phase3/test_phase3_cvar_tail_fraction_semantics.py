"""CVaR is the mean of the worst `tail_fraction`, default 0.2; `cvar_q` is its deprecated complement."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cedkv.config import load
from cedkv.core.risk import cvar


def mean_of_the_worst(values: list[float], tail_fraction: float) -> float:
    """By the definition and by hand: walk down from the worst until the tail is used up."""
    left = tail_fraction * len(values)
    total, size = 0.0, left
    for value in sorted(values, reverse=True):
        weight = min(1.0, left)
        total += weight * value
        left -= weight
        if left <= 0:
            break
    return total / size


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 16, 33, 64])
@pytest.mark.parametrize("tail_fraction", [0.05, 0.2, 1 / 3, 0.5, 0.99, 1.0])
def test_it_is_the_mean_of_the_worst_share_for_whole_and_fractional_tails(n, tail_fraction):
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(n, generator=generator, dtype=torch.float64)
    expected = mean_of_the_worst(values.tolist(), tail_fraction)
    assert cvar(values, tail_fraction).item() == pytest.approx(expected, rel=1e-12)


def test_the_default_minibatch_of_16_uses_three_prompts_and_a_fifth_of_the_fourth():
    values = torch.arange(16, dtype=torch.float64)
    assert cvar(values, 0.2).item() == pytest.approx((15 + 14 + 13 + 0.2 * 12) / 3.2)


def test_only_the_worst_prompts_are_pushed_down():
    values = torch.arange(10, dtype=torch.float64, requires_grad=True)
    cvar(values, 0.2).backward()
    assert values.grad.tolist() == [0.0] * 8 + [0.5, 0.5]


def test_more_tail_is_less_risk_down_to_the_mean():
    values = torch.tensor([0.0, 0.1, 0.4, 3.0, 0.2, 0.05], dtype=torch.float64)
    risks = [cvar(values, share / 100).item() for share in range(1, 101)]
    assert all(thin >= wide - 1e-12 for thin, wide in pairwise(risks))
    assert risks[0] == pytest.approx(3.0)
    assert risks[-1] == pytest.approx(values.mean().item())


def test_the_tail_is_a_share_not_a_quantile_level():
    """0.2 means the worst fifth: a quantile level of 0.2 would mean the worst four fifths."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64)
    assert cvar(values, 0.2).item() == 100.0
    assert cvar(values, 0.8).item() == pytest.approx(27.25)


@pytest.mark.parametrize("tail_fraction", [0.0, 1.0001, -0.2, math.nan])
def test_a_share_outside_zero_to_one_is_refused(tail_fraction):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        cvar(torch.ones(4), tail_fraction)


def test_a_fifth_is_the_default_and_cvar_q_its_deprecated_complement(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("phase3: {}\n")
    assert load(path, env={}).config.phase3.loss.off.cvar_tail_fraction == 0.2
    path.write_text("phase3: {loss: {off: {cvar_q: 0.7}}}\n")
    converted = load(path, env={}).config.phase3.loss.off.cvar_tail_fraction
    values = torch.arange(10, dtype=torch.float64)
    assert cvar(values, converted).item() == pytest.approx(8.0)  # the worst 3 of 10
