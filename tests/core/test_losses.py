from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr

from cedkv.core import losses
from cedkv.core.losses import kl_divergence, kl_from_logits, pairwise_slot_overlap, slot_entropy

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


# ----------------------------------------------------------------------------------------------- KL of an evaluation
@given(
    hnp.arrays(np.float64, (2, 5, 3, 11), elements=st.floats(-30, 30)),
    hnp.arrays(np.float64, (2, 3, 11), elements=st.floats(-30, 30)),
    st.sampled_from([1, 70, 1 << 17]),
)
def test_kl_from_logits_is_kl_divergence_block_by_block(student, base, block):
    with mock.patch("cedkv.core.losses._BLOCK_ON_CPU", block):
        logits, log_q = torch.from_numpy(student), log_softmax(base)
        found, top = kl_from_logits(logits.float(), log_q.float())
    wanted = kl_divergence(logits.log_softmax(-1), log_q[:, None])
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    reached = logits.float().gather(-1, top[..., None])[..., 0]
    torch.testing.assert_close(reached, logits.float().amax(-1), atol=1e-5, rtol=0)


@given(hnp.arrays(np.float64, (1, 1, 1, 500), elements=st.floats(-8, 8)), st.floats(1e-5, 1e-3))
def test_a_tiny_kl_from_logits_is_not_drowned_by_rounding(values, step):
    moved = values + step * np.sin(np.arange(500))
    found, _ = kl_from_logits(torch.from_numpy(moved).float(), log_softmax(values, torch.float32)[0])
    exact = kl_divergence(log_softmax(moved), log_softmax(values))
    torch.testing.assert_close(found[0, 0].double(), exact[0, 0], rtol=0.05, atol=1e-11)


@pytest.mark.parametrize("far", [70.0, 100.0, 1e4, math.inf])
def test_kl_from_logits_holds_where_one_side_rules_a_token_out(far):
    """Past what exp can say in float32 the long form takes over; with -inf on both sides nothing is added."""
    logits = torch.tensor([0.0, 0.0, -far, -math.inf]).view(1, 1, 1, 4)
    base = torch.tensor([0.0, 0.0, 1.0, -math.inf])
    found, top = kl_from_logits(logits, base.log_softmax(-1).view(1, 1, 4))
    wanted = -math.log(2) + math.log(2 + math.e)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert top.item() in (0, 1)
    infinite, _ = kl_from_logits(base.view(1, 1, 1, 4), logits.log_softmax(-1)[0])
    assert infinite.item() == pytest.approx((math.e / (2 + math.e)) * far, rel=0.1)
    assert kl_from_logits(torch.full((1, 1, 1, 4), math.nan), logits[0])[0].isnan().all()


def test_where_nothing_can_be_compiled_the_long_form_is_computed_as_it_stands(monkeypatch):
    def broken(_):
        def run(*_):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    logits, log_q = torch.randn(4, 3, 50), torch.randn(3, 50).log_softmax(-1)
    form = losses._LongForm()
    for _ in range(2):
        found, top = form(logits, log_q)
        torch.testing.assert_close(found, kl_divergence(logits.log_softmax(-1), log_q), rtol=0, atol=0)
        assert torch.equal(top, logits.argmax(-1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_long_form_is_the_short_one(dtype):
    for states in (4, 7):
        logits, log_q = torch.randn(1, states, 3, 500).to(dtype), torch.randn(1, 3, 500).log_softmax(-1)
        form = losses._LongForm()
        found, top = form(logits[0], log_q[0])
        assert form._run is not losses._kl_and_top
        wanted, tops = kl_from_logits(logits, log_q)
        torch.testing.assert_close(found, wanted[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(top, tops[0])
