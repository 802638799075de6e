"""Divergences and the parts of the structural loss, as free functions of tensors.

Shapes: ``...`` any leading axes, ``V`` vocabulary, ``J`` candidates of a slot, ``A`` atoms on a common axis.
"""

from __future__ import annotations

from collections.abc import Callable

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


def kl_from_logits(logits: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(softmax(logits) || q) and the arg max of the logits, for the many rows of an evaluation; no graph is made.

    The sum of `kl_divergence`, in a third of the passes over memory and a block of rows at a time: what lies between
    stays in the cache, and nothing of the size of `logits` is made.

    Args:
        logits: ``[B, N, K, V]``, of any floating type.
        log_q: ``[B, K, V]``, float32 or wider: what all N are compared with.

    Returns:
        ``[B, N, K]`` nats in the type of ``log_q``, and token ids.

    >>> q = torch.tensor([0.9, 0.1]).log()
    >>> kl_from_logits(torch.zeros(1, 1, 1, 2), q.view(1, 1, 2))
    (tensor([[[0.5108]]]), tensor([[[0]]]))
    """
    on_cpu = logits.device.type == "cpu"
    states = max(1, (_BLOCK_ON_CPU if on_cpu else _BLOCK_ON_GPU) // logits[0, 0].numel())
    found = [
        _short_form(block, q) if on_cpu else _long_form(block, q)
        for rows, q in zip(logits, log_q, strict=True)
        for block in rows.split(states)
    ]
    divergences, tops = zip(*found, strict=True)
    shape = logits.shape[:-1]
    return torch.cat(divergences).view(shape), torch.cat(tops).view(shape)


_BLOCK_ON_CPU = 1 << 17  # numbers: half a megabyte, a few of which fit a core's cache
_BLOCK_ON_GPU = 1 << 24
_FAR = 80.0  # log q - log p past which exp leaves float32


def _short_form(logits: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """``sum(p * (exp(d) - 1 - d))`` with ``d = log q - log p``, in place, where no exp overflows."""
    log_p = logits.to(log_q.dtype).log_softmax(-1)
    top = _arg_max(log_p, log_q.argmax(-1))
    difference = log_q - log_p
    if not difference.amax() <= _FAR:  # or it is not a number
        return kl_divergence(log_p, log_q), top
    terms = torch.expm1(difference)
    terms.sub_(difference).clamp_min_(0.0)
    return terms.mul_(log_p.exp_()).sum(-1), top


def _kl_and_top(logits: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    return kl_divergence(logits.to(log_q.dtype).log_softmax(-1), log_q), logits.argmax(-1)


class _LongForm:
    """`_kl_and_top` in one kernel, where this machine can compile one for the device.

    Which form would do is not asked as on a CPU: the answer is in numbers that a GPU is still working on.
    """

    def __init__(self) -> None:
        self._run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, logits: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        if self._run is None:
            self._run = torch.compile(_kl_and_top)
        try:
            return self._run(logits, log_q)
        except RuntimeError:  # no compiler here, or none for this device
            self._run = _kl_and_top
            return self._run(logits, log_q)


_long_form = _LongForm()


def _arg_max(log_p: Tensor, guess: Tensor) -> Tensor:
    """Arg max over the last axis, which for most rows is `guess`: the maximum is found sooner than its place."""
    top = guess.expand(log_p.shape[:-1]).clone()
    missed = log_p.gather(-1, top[..., None])[..., 0] < log_p.amax(-1)
    top[missed] = log_p[missed].argmax(-1)
    return top


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
