"""Attention masks that make room for slots in front of the keys.

Shapes: B rows, Q queries, T keys, S slots. A mask is bool (True: attend) or additive float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from cedkv.memory.state import States


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Lower-right causal mask [Q, T]: the last query sees every key."""
    q, k = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return k[None, :] <= q[:, None] + (keys - queries)


def with_slots(states: States, window: int | None, mask: Tensor | None, queries: int, length: int) -> Tensor:
    """`mask` [B or 1, 1, Q, T] with S columns for the slots in front."""
    device = next(iter(states.keys.values())).device
    if mask is None:  # unpadded: the mask that sdpa would have implied
        mask = causal_mask(queries, length, device)[None, None]
    mask = mask[..., :length]
    visible = torch.ones(queries, states.slots, dtype=torch.bool, device=mask.device)
    if states.positions is not None:
        _refuse_left_padding(mask, queries, length)
        if window is not None:
            at = torch.arange(length - queries, length, device=mask.device)
            visible = at[:, None] - states.positions[None, :] < window
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(
            ~visible, torch.finfo(mask.dtype).min
        )
    return torch.cat([visible.expand(mask.shape[0], mask.shape[1], -1, -1), mask], dim=3)


def _refuse_left_padding(mask: Tensor, queries: int, length: int) -> None:
    """A whole document stands where the first token's row begins: in a padded row that is somewhere else."""
    first = mask[:, :, 0, 0]
    seen = first if mask.dtype == torch.bool else first > torch.finfo(mask.dtype).min
    if queries == length and not bool(seen.all()):
        raise ValueError(
            "a whole document is injected into rows that are padded on the left: pad on the right or give rows of one length"
        )


def full_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Sdpa's mask, never skipped: with slots in front, `is_causal` would crop the keys to the first Q."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
