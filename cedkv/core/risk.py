"""Conditional value at risk: the mean of the worst cases."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cvar(values: Tensor, tail_fraction: float) -> Tensor:
    r"""Mean of the worst (largest) ``tail_fraction`` of ``values``, exact for any sample size.

    With ``n`` samples and ``k = n * tail_fraction``, the ``floor(k)`` largest enter with weight one and the next one
    with the fraction that is left, so that the weights sum to ``k``. This is the empirical CVaR at level
    ``1 - tail_fraction`` of Rockafellar and Uryasev ("Optimization of Conditional Value-at-Risk", 2000):
    ``min_t t + mean(relu(values - t)) / tail_fraction``.

    Args:
        values: ``[n]``, floating point, any unit (nats in this project). NaN is not hidden: it makes the result NaN.
        tail_fraction: share of the samples that counts as the tail, in (0, 1]; 1 is the mean.

    Returns:
        A scalar in the unit and dtype of ``values``, differentiable.

    Raises:
        ValueError: ``values`` is empty, not one-dimensional or not floating point, or ``tail_fraction`` is outside
            (0, 1].

    >>> cvar(torch.tensor([1.0, 5.0, 2.0, 4.0]), 0.5)
    tensor(4.5000)
    >>> cvar(torch.tensor([1.0, 5.0, 2.0]), 0.5)  # (5 + 0.5 * 2) / 1.5
    tensor(4.)
    """
    worst, shares, tail = _tail(values, tail_fraction)
    return (values[worst] * shares).sum() / tail


def tail_weights(values: Tensor, tail_fraction: float) -> Tensor:
    """The gradient of `cvar`: ``[n]``, the weight of each of ``values`` in it. They sum to one; most are zero.

    >>> tail_weights(torch.tensor([1.0, 5.0, 2.0, 4.0]), 0.5)
    tensor([0.0000, 0.5000, 0.0000, 0.5000])
    """
    worst, shares, tail = _tail(values, tail_fraction)
    return torch.zeros_like(values).index_copy(0, worst, shares / tail)


def _tail(values: Tensor, tail_fraction: float) -> tuple[Tensor, Tensor, float]:
    """Places of the worst ``values``, largest first, the share that each is in the tail with, and the tail's size."""
    if not 0.0 < tail_fraction <= 1.0:
        raise ValueError(
            f"tail_fraction is {tail_fraction}; it is a share of the samples: give a value in (0, 1]"
        )
    if values.ndim != 1 or values.numel() == 0 or not values.is_floating_point():
        raise ValueError(
            f"values is {values.dtype} of shape {list(values.shape)}; CVaR needs a non-empty floating point [n]: "
            "flatten the losses of the prompts first"
        )
    tail = values.numel() * tail_fraction
    whole = math.floor(tail)
    fraction = tail - whole
    worst = values.topk(whole + (1 if fraction > 0 else 0)).indices
    shares = torch.ones_like(worst, dtype=values.dtype)
    if fraction > 0:
        shares[-1] = fraction
    return worst, shares, tail
