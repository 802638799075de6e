"""One query beside a long cache: slots are attended to where they are, and the cache is not copied to stand behind them.

The layer's own attention function wants keys and values in one piece. For one new token that piece would be made of the whole
cache, in every layer, for a few slots. `decode` puts scores of both side by side, one softmax goes over them, and each half
meets its own values: the same sums in another order.

Beside a short cache the piece is soon made. But where there is a mask, as slots with a bias bring one, transformers repeats
keys and values for every query head, for the sake of kernels that the CPU does not have; `attend` leaves that out.

Shapes: B rows, H query heads, G kv heads, T keys, S slots, D head size of keys, E of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cedkv.memory.state import LayerSlots

LONG = 512
"""Keys from which on copying them takes longer than the products in two parts."""

_NOT_HERE = ("softcap", "s_aux", "position_bias")
"""What some families do to scores on the way; their own function knows how."""


def is_plain(kwargs: Mapping[str, Any]) -> bool:
    """Whether the layer's own function is softmax attention and nothing else."""
    return all(kwargs.get(name) is None for name in _NOT_HERE) and not kwargs.get("dropout")


def can_decode(query: Tensor, key: Tensor, kwargs: Mapping[str, Any]) -> bool:
    """Whether `decode` does what the layer's own function would, and sooner."""
    return query.shape[2] == 1 and key.shape[2] >= LONG and is_plain(kwargs)


def can_attend(query: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether `attend` does what the layer's own function would, and sooner."""
    masked = mask is not None and query.shape[2] == 1 and query.device.type == "cpu"
    return masked and is_plain(kwargs)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None
) -> Tensor:
    """Attention [B, Q, H, E] of queries [B, H, Q, D] to keys [B, G, T, D], under a mask as in `decode`."""
    found = functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return found.transpose(1, 2)


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    slots: LayerSlots,
    *,
    scaling: float | None,
) -> Tensor:
    """Attention [B, 1, H, E] of one query [B, H, 1, D] to its slots and to its keys [B, G, T, D].

    Args:
        mask: [B or 1, 1, 1, T], bool (True: attend) or added to the scores; every key is seen without it.
        slots: of the B rows.
    """
    rows, heads, _, size = query.shape
    kv_heads, count = slots.key.shape[1:3]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).view(rows, kv_heads, -1, size)
    own = grouped @ key.transpose(2, 3)
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        own = own.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else own + mask
    scores = grouped @ slots.key.to(key.dtype).transpose(2, 3)
    if slots.bias is not None:
        scores = scores + slots.bias_of(heads).view(rows, kv_heads, -1, count)
    weights = torch.cat([scores.to(own.dtype), own], dim=3).softmax(3, dtype=torch.float32).to(value.dtype)
    on_slots, on_keys = weights.split([count, key.shape[2]], dim=3)
    out = on_keys @ value + on_slots @ slots.value.to(value.dtype)
    return out.view(rows, heads, 1, -1).transpose(1, 2)
