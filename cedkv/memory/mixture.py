"""From logits to mixture weights: softmax, top-k, renormalise, then the delimiter rule.

Shapes: `...` any leading axes (states, layers, heads, slots), J candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.memory.delimiter import cap_delimiters, keep_a_non_delimiter


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights [..., J] that sum to one with at most k of them non-zero, and the delimiter mass [...] before the cap."""

    weights: Tensor
    delimiter_mass: Tensor


def mix(logits: Tensor, k: int, is_delimiter: Tensor, mass_cap: float) -> Mixture:
    """Mixture weights of every slot.

    Args:
        logits: [..., J]; -inf marks padding (a document with fewer than J candidates).
        k: candidates a slot may use; more than J means all.
        is_delimiter: [..., J] bool, broadcastable with `logits`. Every slot has a candidate that is no delimiter.
        mass_cap: c, the largest delimiter mass of a slot after the rule.
    """
    is_delimiter = is_delimiter.expand_as(logits)
    top = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    selected = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top, True) & (logits > -torch.inf)
    selected = keep_a_non_delimiter(selected, logits, is_delimiter)
    log_weights = logits.masked_fill(~selected, -torch.inf)
    # The softmax over the selected logits is the softmax over all, restricted and renormalised.
    weights, mass = cap_delimiters(log_weights.softmax(-1), log_weights, is_delimiter, mass_cap)
    return Mixture(weights, mass)
