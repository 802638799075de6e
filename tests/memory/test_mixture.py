"""The mixture and the delimiter rule, against the contract's formula written out slot by slot in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.memory.delimiter import mass_penalty
from cedkv.memory.mixture import mix

LOGIT = st.floats(-80, 80, width=32)
CAP = st.floats(0.01, 1.0)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [x / math.fsum(powers) for x in powers]


def slow_mixture(
    logits: list[float], k: int, delimiter: list[bool], cap: float
) -> tuple[list[float], float, set[int]]:
    """Softmax, top k, renormalise, then with m over c: delimiters by c/m, the others by (1-c)/(1-m)."""
    p = softmax(logits)
    kept = sorted(range(len(p)), key=lambda j: -logits[j])[:k]
    if all(delimiter[j] for j in kept):
        kept[-1] = max((j for j in range(len(p)) if not delimiter[j]), key=lambda j: logits[j])
    inside = softmax([logits[j] for j in kept])  # p over the kept ones, renormalised
    weights = [0.0] * len(p)
    for j, share in zip(kept, inside, strict=True):
        weights[j] = share
    m = math.fsum(w for w, d in zip(weights, delimiter, strict=True) if d)
    rest = math.fsum(
        w for w, d in zip(weights, delimiter, strict=True) if not d
    )  # 1 - m, without cancellation
    if m > cap:
        weights = [
            w * cap / m if d else w * (1 - cap) / rest for w, d in zip(weights, delimiter, strict=True)
        ]
    return weights, m, set(kept)


@st.composite
def slots(draw, *, distinct: bool):
    """Logits, k, delimiter flags with at least one that is none, and the cap."""
    count = draw(st.integers(1, 10))
    logits = draw(st.lists(LOGIT, min_size=count, max_size=count, unique=distinct))
    flags = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda f: not all(f)))
    return logits, draw(st.integers(1, count + 2)), flags, draw(CAP)


@given(slots(distinct=True))
def test_it_is_the_formula(slot):
    logits, k, flags, cap = slot
    weights, mass, _ = slow_mixture(logits, k, flags, cap)
    found = mix(torch.tensor(logits), k, torch.tensor(flags), cap)
    torch.testing.assert_close(found.weights, torch.tensor(weights), atol=1e-5, rtol=1e-4)
    assert found.delimiter_mass.item() == pytest.approx(mass, abs=1e-5)


@given(slots(distinct=False), st.integers(0, 3), st.booleans())
def test_weights_sum_to_one_over_at_most_k_with_delimiters_under_the_cap(slot, padding, tie):
    logits, k, flags, cap = slot
    if tie:
        logits = [round(x / 40) * 40.0 for x in logits]
    padded = torch.tensor([*logits, *[-math.inf] * padding])
    is_delimiter = torch.tensor([*flags, *[False] * padding])
    found = mix(padded, k, is_delimiter, cap)
    assert (found.weights >= 0).all()
    assert found.weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (found.weights > 0).sum() <= k
    assert found.weights[is_delimiter].sum() <= cap + 1e-6
    assert (found.weights[len(logits) :] == 0).all()  # padding is never chosen
    assert 0 <= found.delimiter_mass <= 1 + 1e-6


@given(slots(distinct=True), st.integers(0, 2))
def test_gradients_are_finite_and_only_of_what_is_mixed(slot, padding):
    logits, k, flags, cap = slot
    w = torch.tensor([*logits, *[-math.inf] * padding], requires_grad=True)
    is_delimiter = torch.tensor([*flags, *[False] * padding])
    found = mix(w, k, is_delimiter, cap)
    against = torch.linspace(-1, 2, len(w))
    ((found.weights * against).sum() + mass_penalty(found.delimiter_mass, cap)).backward()
    assert w.grad is not None
    assert torch.isfinite(w.grad).all()
    kept = slow_mixture(logits, k, flags, cap)[2]
    assert all(w.grad[j] == 0 for j in range(len(w)) if j not in kept)


@pytest.mark.parametrize("logits", [[80.0, -80.0, -80.0], [-80.0, 80.0, 80.0], [80.0, 80.0, -80.0]])
def test_a_delimiter_that_takes_all_the_mass_still_leaves_gradients_and_others(logits):
    """1 - m is far below the smallest float32 here; the others keep their proportions all the same."""
    w = torch.tensor(logits, requires_grad=True)
    is_delimiter = torch.tensor([True, False, False])
    weights = mix(w, 3, is_delimiter, 0.15).weights
    weights[1].backward()
    assert torch.isfinite(weights).all()
    assert torch.isfinite(w.grad).all()
    assert weights[0] <= 0.15 + 1e-6
    assert weights[1:].sum() >= 0.85 - 1e-6


@pytest.mark.parametrize("cap", [0.15, 0.9])
@pytest.mark.parametrize("k", [2, 4, 6])
def test_the_gradient_is_that_of_finite_differences_on_either_side_of_the_cap(cap, k):
    w = torch.tensor([1.0, 0.3, -0.4, 0.8, -1.0, 0.1], dtype=torch.float64, requires_grad=True)
    is_delimiter = torch.tensor([True, False, True, False, False, True])

    def both(x):
        found = mix(x, k, is_delimiter, cap)
        return found.weights, found.delimiter_mass

    assert torch.autograd.gradcheck(both, (w,))


def test_slots_do_not_see_one_another():
    """A slot over the cap is scaled, its neighbours are left alone: as one batch, as alone."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 1, 1, 4, 8, generator=generator)
    flags = torch.rand(2, 1, 1, 4, 8, generator=generator) < 0.4
    flags[..., 0] = False
    together = mix(logits, 4, flags, 0.15)
    for n in range(2):
        for s in range(4):
            alone = mix(logits[n, 0, 0, s], 4, flags[n, 0, 0, s], 0.15)
            torch.testing.assert_close(together.weights[n, 0, 0, s], alone.weights)
            torch.testing.assert_close(together.delimiter_mass[n, 0, 0, s], alone.delimiter_mass)


def test_more_than_all_candidates_means_all():
    logits, flags = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([False, False, False])
    torch.testing.assert_close(mix(logits, 99, flags, 0.15).weights, logits.softmax(-1))


def test_one_flag_per_candidate_serves_all_layers_and_heads():
    logits = torch.randn(2, 3, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    flags = torch.zeros(2, 1, 1, 4, 8, dtype=torch.bool)
    flags[..., ::2] = True
    spread = mix(logits, 4, flags.expand_as(logits).clone(), 0.15)
    torch.testing.assert_close(mix(logits, 4, flags, 0.15).weights, spread.weights)
