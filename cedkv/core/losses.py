"""Divergences and the parts of the structural loss, as free functions of tensors.

Shapes: ``...`` any leading axes, ``V`` vocabulary, ``J`` candidates of a slot, ``A`` atoms on a common axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR = 0.5  # |log p - log q| under which the difference form loses too many digits


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last axis, from normalised log-probabilities.

    Summed as ``p * (x + exp(-x) - 1)`` with ``x = log p - log q``. For normalised inputs this is the same number, with
    the same gradient, as the textbook ``sum(p * x)``; but every term is non-negative and rounding enters squared, so
    equal inputs give exactly 0 and the result is never negative, with nothing clamped that could hide an error.

    Args:
        log_p: ``[..., V]``, log-probabilities. ``-inf`` (a token that cannot occur) contributes nothing.
        log_q: ``[..., V]``, broadcastable with ``log_p``. ``-inf`` where p is positive gives ``inf``.

    Returns:
        ``[...]``, float32 or wider: half precision inputs are widened first. NaN stays NaN.

    >>> kl_divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log())
    tensor(0.5108)
    """
    dtype = torch.promote_types(torch.promote_types(log_p.dtype, log_q.dtype), torch.float32)
    log_p, log_q = log_p.to(dtype), log_q.to(dtype)
    p = log_p.exp()
    q = log_q.exp()
    # Both branches of a `where` are differentiated: keep the arguments of the unused one finite.
    possible = log_p != -torch.inf
    x = torch.where(possible, log_p - torch.where(possible, log_q, 0.0), 0.0)
    near = x.abs() < _NEAR
    x_near = torch.where(near, x, 0.0)
    terms = torch.where(near & possible, p * (x_near + torch.expm1(-x_near)).clamp_min(0.0), p * x + (q - p))
    return terms.sum(dim=-1)


def slot_entropy(p: Tensor) -> Tensor:
    """Shannon entropy of mixture weights ``[..., J]`` over the last axis, in nats, ``[...]``.

    Weights that are exactly zero (outside the top k) contribute nothing, to the value and to the gradient.

    >>> slot_entropy(torch.tensor([0.5, 0.5, 0.0]))
    tensor(0.6931)
    """
    return -(p * torch.where(p > 0, p, 1.0).log()).sum(dim=-1)


def pairwise_slot_overlap(p: Tensor) -> Tensor:
    """Mean cosine between the mixtures of distinct slots, 0 (no atom shared) to 1 (all alike).

    Args:
        p: ``[..., slots, A]``, non-negative weights of each slot over a common atom axis.

    Returns:
        ``[...]``; zero where there is only one slot. A slot without any weight overlaps with nothing.

    >>> pairwise_slot_overlap(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.)
    """
    slots = p.shape[-2]
    if slots < 2:
        return p.new_zeros(p.shape[:-2])
    norm = p.square().sum(dim=-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny).sqrt()
    unit = p / norm
    # Sum over all pairs without the [slots, slots] matrix: |sum of units|^2 = sum of |unit|^2 + twice the pairs.
    both_orders = unit.sum(dim=-2).square().sum(dim=-1) - unit.square().sum(dim=(-2, -1))
    return both_orders / (slots * (slots - 1))
