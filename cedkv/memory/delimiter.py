"""The delimiter rule: after top-k and renormalisation, per slot, delimiters hold at most `mass_cap` of the mixture."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_a_non_delimiter(selected: Tensor, logits: Tensor, is_delimiter: Tensor) -> Tensor:
    """Where a slot selected delimiters only, its best non-delimiter takes the place of its weakest choice.

    Args:
        selected: [..., J] bool, the top k.
        logits: [..., J], -inf for padding.
        is_delimiter: [..., J] bool.

    Returns:
        [..., J] bool, with as many candidates selected as before.
    """
    only = ~(selected & ~is_delimiter).any(-1, keepdim=True)
    weakest = logits.masked_fill(~selected, torch.inf).argmin(-1, keepdim=True)
    best_other = logits.masked_fill(is_delimiter, -torch.inf).argmax(-1, keepdim=True)
    swapped = selected.scatter(-1, weakest, False).scatter(-1, best_other, True)
    return torch.where(only, swapped, selected)


def cap_delimiters(
    weights: Tensor, log_weights: Tensor, is_delimiter: Tensor, mass_cap: float
) -> tuple[Tensor, Tensor]:
    """Scale delimiters by c/m and the others by (1-c)/(1-m) in every slot whose delimiter mass m exceeds the cap c.

    Written as two softmaxes over the log-weights, which is the same and stays finite when 1-m underflows.

    Args:
        weights: [..., J], sums to one; zero outside the top k.
        log_weights: [..., J], its logarithm up to a constant per slot; -inf outside the top k.
        is_delimiter: [..., J] bool; each slot has a selected candidate that is none.
        mass_cap: c, in (0, 1].

    Returns:
        capped weights [..., J] and the mass before the cap [...].
    """
    mass = (weights * is_delimiter).sum(-1)
    over = (mass > mass_cap)[..., None]
    # The unused branch must not produce NaN gradients: a slot without delimiters gets a harmless one.
    has_delimiter = (is_delimiter & (log_weights > -torch.inf)).any(-1, keepdim=True)
    among_delimiters = torch.where(
        has_delimiter, log_weights.masked_fill(~is_delimiter, -torch.inf), 0.0
    ).softmax(-1)
    among_others = log_weights.masked_fill(is_delimiter, -torch.inf).softmax(-1)
    capped = mass_cap * among_delimiters + (1.0 - mass_cap) * among_others
    return torch.where(over, capped, weights), mass


def mass_penalty(mass: Tensor, mass_cap: float) -> Tensor:
    """mean_s relu(m_s - c): the mass before the cap, [...] any shape, as a scalar."""
    return (mass - mass_cap).relu().mean()
