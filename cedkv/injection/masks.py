"""Attention masks that make room for slots in front of the keys.

Shapes: B rows, Q queries, T keys, S slots. A mask is bool (True: attend) or additive float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import sdpa_mask

from cedkv.memory.state import States


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Lower-right causal mask [Q, T]: the last query sees every key."""
    q, k = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return k[None, :] <= q[:, None] + (keys - queries)


def with_slots(
    states: States, window: int | None, mask: Tensor | None, queries: int, length: int
) -> Tensor | None:
    """`mask` [B or 1, 1, Q, T] with S columns for the slots in front; None where there was none and one query sees it all."""
    if mask is None and queries == 1 and states.positions is None:
        return None
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
        visible = additive(visible, mask.dtype)
    return torch.cat([visible.expand(mask.shape[0], mask.shape[1], -1, -1), mask], dim=3)


def with_bias(mask: Tensor | None, bias: Tensor, heads: int, keys: int, dtype: torch.dtype) -> Tensor:
    """`mask` [B or 1, 1, Q, S + T] with `bias` [B, H or G, S] on its slots, additive and for every query head: [B, H, Q, S + T].

    Without a mask one query sees all of the `keys` = S + T.
    """
    per_head = bias.to(dtype if mask is None or mask.dtype == torch.bool else mask.dtype)
    if bias.shape[1] != heads:
        per_head = per_head.repeat_interleave(heads // bias.shape[1], dim=1)
    per_head = per_head[:, :, None]
    if mask is None:
        return functional.pad(per_head, (0, keys - bias.shape[2]))
    if mask.dtype == torch.bool:
        mask = additive(mask, dtype)
    slots, own = mask.split([bias.shape[2], mask.shape[3] - bias.shape[2]], dim=3)
    return torch.cat([slots + per_head, own.expand(bias.shape[0], heads, -1, -1)], dim=3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as one that is added to scores: 0 to attend, the smallest number of `dtype` to hide."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _refuse_left_padding(mask: Tensor, queries: int, length: int) -> None:
    """A whole document stands where the first token's row begins: in a padded row that is somewhere else."""
    first = mask[:, :, 0, 0]
    seen = first if mask.dtype == torch.bool else first > torch.finfo(mask.dtype).min
    if queries == length and not bool(seen.all()):
        raise ValueError(
            "a whole document is injected into rows that are padded on the left: pad on the right or give rows of one length"
        )


_SKIPPABLE: ContextVar[bool] = ContextVar("cedkv_masks_skippable", default=False)


@contextmanager
def skippable(allowed: bool) -> Iterator[None]:
    """Whether masks within the block may be left out, as the bare model does it; without slots that is the same to the bit."""
    token = _SKIPPABLE.set(allowed)
    try:
        yield
    finally:
        _SKIPPABLE.reset(token)


def full_mask(batch_size: int, q_length: int, *args: Any, **kwargs: Any) -> Tensor | None:
    """Sdpa's mask, not skipped: with slots in front, `is_causal` would crop the keys to the first Q.

    One query is never causal: it sees everything that its cache holds, and slots as well.
    """
    if q_length > 1 and not _SKIPPABLE.get():
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(batch_size, q_length, *args, **kwargs)


_REPLACED: ContextVar[bool] = ContextVar("cedkv_masks_replaced", default=False)


@contextmanager
def no_masks() -> Iterator[None]:
    """Within the block models make no masks: whoever attends brings their own."""
    token = _REPLACED.set(True)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def unless_replaced(make: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """`make`, but None within `no_masks`."""

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        return None if _REPLACED.get() else make(*args, **kwargs)

    return mask
