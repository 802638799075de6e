"""From id sequences to batches: equal lengths together, padding on the left or on the right where lengths differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Padded:
    """B rows of T tokens, padded on the left so that the last position is every row's last token.

    `mask` is None where nothing is padded. `positions` count from each row's first token.
    """

    ids: Tensor  # [B, T]
    mask: Tensor | None  # [B, T]
    positions: Tensor  # [B, T] or [1, T]

    def inputs(self) -> dict[str, Tensor | None]:
        """Keyword arguments of a model's forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad_left(sequences: Sequence[tuple[int, ...]], device: torch.device, pad: int = 0) -> Padded:
    """Stack `sequences`, the shorter ones behind padding."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad] * (width - len(s)) + list(s) for s in sequences], device=device)
    if all(len(s) == width for s in sequences):
        return Padded(ids, None, torch.arange(width, device=device)[None])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return Padded(ids, mask, (mask.cumsum(-1) - 1).clamp_min(0))


def by_length(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in groups of at most `rows`, each group of one length, shortest first, stable within a length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[length].append(index)
    for length in sorted(groups):
        members = groups[length]
        for start in range(0, len(members), rows):
            yield members[start : start + rows]


def pad_right(sequences: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Stack `sequences` [B, T], the last token of the shorter ones repeated behind them.

    In a causal model no token sees what follows it: such a batch needs no mask, and every row starts at position 0.
    """
    width = max(map(len, sequences))
    return torch.tensor([[*s, *s[-1:] * (width - len(s))] for s in sequences], device=device)


def by_similar_length(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in groups of at most `rows`, shortest first, no length over 4/3 of the shortest of its group."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) == rows or 3 * lengths[index] > 4 * lengths[group[0]]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def every_nth(items: Sequence[T], size: int = 1024) -> list[T]:
    """At most `size` of `items`, spread evenly over them: the same ones whenever it is asked."""
    count = len(items)
    return list(items) if count <= size else [items[i * count // size] for i in range(size)]
