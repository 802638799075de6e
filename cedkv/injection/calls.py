"""What an observer sees of an attention layer.

Shapes: B rows, H query heads, G kv heads, Q queries, T keys, S slots, D head size, K places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cedkv.injection.masks import causal_mask


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer hands to its attention function, with the slots (if any) already prepended to keys, values and mask."""

    layer: int
    query: Tensor  # [B, H, Q, D]
    key: Tensor  # [B, G, S + T, D]
    value: Tensor  # [B, G, S + T, D]
    mask: Tensor | None  # bool or additive float, [B or 1, 1, Q, S + T]
    scaling: float
    slots: int
    softcap: float | None = None  # Gemma 2: scores are c · tanh(score / c)
    sinks: Tensor | None = None  # gpt-oss: [H], a score per head that takes weight and gives nothing
    last: Tensor | None = (
        None  # [B, K] the queries that count as the last ones, where these are not at the end
    )

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S + T] of the last `queries` positions, recomputed in float32.

        They sum to one, or to less where the model has sinks.
        """
        scores = self.scores(queries)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = wide(self.sinks)[None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]

    def scores(self, queries: int) -> Tensor:
        """What the last `queries` positions give every key before the softmax: [B, H, queries, S + T], float32 at least."""
        groups = self.query.shape[1] // self.key.shape[1]
        key = wide(self.key).repeat_interleave(groups, dim=1)
        mask = self.mask
        if mask is None:
            mask = causal_mask(self.query.shape[2], self.key.shape[2], key.device)[None, None]
        query, mask = (last_of(x, self.last, queries) for x in (self.query, mask))
        scores = wide(query) @ key.transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * (scores / self.softcap).tanh()
        # An additive mask hides a key by the smallest number of its type: in half precision no more than -65504.
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + wide(mask)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def last_of(x: Tensor, last: Tensor | None, queries: int) -> Tensor:
    """The last `queries` of axis 2 of `x` [B or 1, H or 1, Q, ...]; of the places `last` [B, K] where these are given."""
    if last is None:
        return x[:, :, -queries:]
    at = last[:, -queries:]
    rows = torch.arange(at.shape[0], device=at.device)[:, None] if x.shape[0] > 1 else 0
    return x.transpose(1, 2)[rows, at].transpose(1, 2)


@dataclass(frozen=True, slots=True)
class MergedCall:
    """What an observer sees of a layer whose slots were merged into attention that had been computed before."""

    layer: int
    slots: int
    weights: Tensor  # [B, H, Q, S], of the slots only
    last: Tensor | None = None  # as in `AttentionCall`

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S] of the last `queries` positions on the slots."""
        return last_of(self.weights, self.last, queries)


class Attended(Protocol):
    """What is left to see of a layer however its slots came in."""

    @property
    def slots(self) -> int:
        """How many there are."""

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S ...] of the last `queries` positions, slots first."""


Observer = Callable[[AttentionCall], None]
