"""What attention alone says about a divergence, and how far to believe it. Pure functions of tensors.

A proxy looks at what slots do to the output of attention at the last position, layer by layer, instead of running the
layers behind it. It costs no forward pass; what it is worth is measured against the KL at every eval tick.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_change(found: Tensor, wanted: Tensor) -> Tensor:
    """``|found - wanted|^2 / |wanted|^2`` over heads and their outputs.

    Args:
        found: ``[..., H, E]``.
        wanted: broadcastable with it.

    Returns:
        ``[...]``, zero exactly where the two are equal.

    >>> relative_change(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(0.2500)
    """
    size = wanted.square().sum((-2, -1)).clamp_min(torch.finfo(wanted.dtype).tiny)
    return (found - wanted).square().sum((-2, -1)) / size


def pearson_of_logs(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of ``log a`` and ``log b`` over all pairs in which both are positive and finite.

    NaN where fewer than three are, or where one of the two does not vary.

    >>> pearson_of_logs(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 12.0, 48.0]))
    1.0
    """
    a, b = a.flatten().double(), b.flatten().double()
    usable = (a > 0) & (b > 0) & torch.isfinite(a) & torch.isfinite(b)
    return _pearson(a[usable].log(), b[usable].log())


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; equal values share their mean rank. NaN where a value is not finite or nothing varies.

    >>> spearman(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([0.1, 0.2, 7.0]))
    1.0
    """
    a, b = a.flatten().double(), b.flatten().double()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.nan
    return _pearson(_ranks(a), _ranks(b))


def _ranks(x: Tensor) -> Tensor:
    """Rank of each value, from 1; the mean of their ranks where values are equal."""
    ordered = x.sort().values
    below, up_to = torch.searchsorted(ordered, x), torch.searchsorted(ordered, x, right=True)
    return (below + 1 + up_to).double() / 2.0


def _pearson(x: Tensor, y: Tensor) -> float:
    if x.numel() < 3:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    norm = (x.square().sum() * y.square().sum()).sqrt()
    return max(-1.0, min(1.0, (x @ y / norm).item())) if norm > 0 else math.nan
