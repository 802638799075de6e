from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr

from cedkv.core.losses import kl_divergence, pairwise_slot_overlap, slot_entropy

logits = hnp.arrays(np.float64, (3, 11), elements=st.floats(-30, 30))
weights = hnp.arrays(np.float64, (2, 4, 6), elements=st.just(0.0) | st.floats(1e-6, 1))


def log_softmax(values: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(values).to(dtype).log_softmax(dim=-1)


@given(logits, logits)
def test_kl_is_scipys(first, second):
    log_p, log_q = log_softmax(first), log_softmax(second)
    expected = rel_entr(log_p.exp().numpy(), log_q.exp().numpy()).sum(-1)
    np.testing.assert_allclose(kl_divergence(log_p, log_q).numpy(), expected, rtol=1e-9, atol=1e-12)


@given(logits, logits)
def test_kl_in_float32_is_near_the_exact_one_and_never_negative(first, second):
    found = kl_divergence(log_softmax(first, torch.float32), log_softmax(second, torch.float32))
    exact = kl_divergence(log_softmax(first), log_softmax(second))
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


@given(hnp.arrays(np.float64, (2, 500), elements=st.floats(-8, 8)), st.floats(1e-5, 1e-3))
def test_a_tiny_kl_is_not_drowned_by_rounding(values, step):
    """The sum p (log p - log q) is off by 1e-7 in float32, more than these divergences themselves."""
    moved = values + step * np.sin(np.arange(500))
    exact = kl_divergence(log_softmax(values), log_softmax(moved))
    found = kl_divergence(log_softmax(values, torch.float32), log_softmax(moved, torch.float32))
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=1e-10)


@given(logits)
def test_kl_of_equals_is_exactly_zero(values):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        log_p = log_softmax(values, dtype)
        assert (kl_divergence(log_p, log_p) == 0).all()


def test_kl_has_the_gradient_of_the_textbook_sum():
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(4, 9, generator=generator, dtype=torch.float64) * scale for scale in (3.0, 3.0)]
    raw[1][1] = raw[0][1] + 0.01  # close, the other branch
    ours = [values.clone().requires_grad_() for values in raw]
    theirs = [values.clone().requires_grad_() for values in raw]
    kl_divergence(*(values.log_softmax(-1) for values in ours)).sum().backward()
    log_p, log_q = (values.log_softmax(-1) for values in theirs)
    (log_p.exp() * (log_p - log_q)).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_impossible_tokens_contribute_nothing_to_value_or_gradient():
    first = torch.tensor([0.0, 1.0, -math.inf, -math.inf], dtype=torch.float64)
    second = torch.tensor([0.5, 0.0, 2.0, -math.inf], dtype=torch.float64, requires_grad=True)
    kl = kl_divergence(first.log_softmax(0), second.log_softmax(0))
    p, q = first.softmax(0).numpy(), second.detach().softmax(0).numpy()
    assert kl.item() == pytest.approx(rel_entr(p, q).sum())
    kl.backward()
    assert torch.isfinite(second.grad).all()
    torch.testing.assert_close(second.grad, torch.from_numpy(q - p))


def test_a_token_the_other_rules_out_costs_infinitely_much_and_nan_stays_nan():
    half = torch.tensor([0.5, 0.5]).log()
    assert kl_divergence(half, torch.tensor([1.0, 0.0]).log()).item() == math.inf
    assert math.isnan(kl_divergence(half, torch.tensor([math.nan, 0.0])).item())


def test_far_apart_distributions_neither_overflow_nor_vanish():
    near = torch.tensor([0.0, -200.0]).log_softmax(0)
    far = torch.tensor([-200.0, 0.0]).log_softmax(0)
    assert kl_divergence(near, far).item() == pytest.approx(200.0)


def test_half_precision_is_widened_and_leading_axes_kept():
    log_p = torch.randn(2, 3, 7).log_softmax(-1).bfloat16()
    assert kl_divergence(log_p, log_p[:1]).dtype is torch.float32
    assert kl_divergence(log_p, log_p[:1]).shape == (2, 3)


@given(st.integers(1, 12))
def test_entropy_of_k_equal_weights_is_log_k(k):
    p = torch.zeros(15, dtype=torch.float64)
    p[:k] = 1 / k
    p.requires_grad_()
    entropy = slot_entropy(p)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(k))
    assert torch.isfinite(p.grad).all()


@given(weights)
def test_overlap_is_the_mean_cosine_over_pairs(p):
    found = pairwise_slot_overlap(torch.from_numpy(p)).numpy()
    for state, value in zip(p, found, strict=True):
        cosines = [
            np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0
            for i, a in enumerate(state)
            for b in state[:i]
        ]
        assert value == pytest.approx(np.mean(cosines), abs=1e-9)


def test_overlap_extremes():
    assert pairwise_slot_overlap(torch.eye(4)).item() == 0.0
    assert pairwise_slot_overlap(torch.ones(3, 5)).item() == pytest.approx(1.0)
    assert pairwise_slot_overlap(torch.ones(2, 1, 5)).tolist() == [0.0, 0.0]
    empty = torch.zeros(2, 3, requires_grad=True)
    pairwise_slot_overlap(empty).backward()
    assert torch.isfinite(empty.grad).all()
