"""Rows of a document and many independent segments, packed side by side for the training of the embedded model.

A mask lets a segment see itself and, where it is about the document, the document; its positions start where the
document ends (or at 0 for a bare prompt). Every segment is therefore computed exactly as it will be met later: alone
behind a BOS, with the document before it or without.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cedkv.models import tiny
from cedkv.models.types import CausalLM


@dataclass(slots=True)
class Segment:
    """A piece of a row. `loss_from` is the first token of `ids` that is predicted with full weight."""

    ids: list[int]
    kind: str
    sees_document: bool
    loss_from: int


@dataclass(slots=True)
class Row:
    """A document and its segments; those that see it start `gap` positions behind its end."""

    document: list[int]
    segments: list[Segment] = field(default_factory=list)
    gap: int = 0

    @property
    def tokens(self) -> int:
        """Its length when packed."""
        return len(self.document) + sum(len(piece.ids) for piece in self.segments)


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. B rows of T tokens; `where` and `target` name the N predictions that carry weight."""

    ids: Tensor  # [B, T]
    positions: Tensor  # [B, T]
    masks: dict[str, Tensor]  # layer type -> bool [B, 1, T, T]
    where: Tensor  # [N, 2]
    target: Tensor  # [N]
    weight: Tensor  # [N]
    item: Tensor  # [N] index into `kinds`; -1 where only the prompt's own text is predicted
    kinds: list[str]


def collate(rows: list[Row], prompt_weight: float) -> Batch:
    """Pack `rows` side by side, padded on the right."""
    width = max(row.tokens for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1)
    sees = torch.zeros(shape, dtype=torch.bool)
    where, target, weight, item = [], [], [], []
    kinds: list[str] = []
    for b, row in enumerate(rows):
        size = len(row.document)
        ids[b, :size], positions[b, :size], segment[b, :size] = (
            torch.tensor(row.document),
            torch.arange(size),
            0,
        )
        at = size
        for index, piece in enumerate(row.segments, start=1):
            n = len(piece.ids)
            start = size + row.gap if piece.sees_document else 0
            ids[b, at : at + n] = torch.tensor(piece.ids)
            positions[b, at : at + n] = torch.arange(start, start + n)
            segment[b, at : at + n], sees[b, at : at + n] = index, piece.sees_document
            for i in range(1, n):
                full = i >= piece.loss_from
                where.append((b, at + i - 1))
                target.append(piece.ids[i])
                weight.append(1.0 if full else prompt_weight)
                item.append(len(kinds) if full else -1)
            kinds.append(piece.kind)
            at += n
    order = torch.arange(width)
    same = segment[:, :, None] == segment[:, None, :]
    document = sees[:, :, None] & (segment[:, None, :] == 0)
    allowed = (order[:, None] >= order[None, :]) & (same | document)
    near = positions[:, :, None] - positions[:, None, :] < tiny.SLIDING_WINDOW
    masks = {"full_attention": allowed[:, None], "sliding_attention": (allowed & near)[:, None]}
    tensors = (torch.tensor(where), torch.tensor(target), torch.tensor(weight), torch.tensor(item))
    return Batch(ids, positions, masks, *tensors, kinds)


def logits_at(model: CausalLM, batch: Batch) -> Tensor:
    """Logits [N, V] of the predictions that carry weight, and of no others."""
    hidden = model.model(
        input_ids=batch.ids, attention_mask=batch.masks, position_ids=batch.positions, use_cache=False
    )
    picked = hidden.last_hidden_state[batch.where[:, 0], batch.where[:, 1]]
    return model.lm_head(picked)


def accuracy_by_kind(logits: Tensor, batch: Batch) -> dict[str, list[bool]]:
    """Per kind, whether every answer token of a segment is the arg max (teacher-forced)."""
    right = (logits.argmax(-1) == batch.target).tolist()
    whole: dict[int, bool] = defaultdict(lambda: True)
    for index, ok in zip(batch.item.tolist(), right, strict=True):
        if index >= 0:
            whole[index] &= ok
    result: dict[str, list[bool]] = defaultdict(list)
    for index, ok in whole.items():
        result[batch.kinds[index]].append(ok)
    return result


def token_accuracy(logits: Tensor, batch: Batch) -> float:
    """Share of fully weighted predictions whose arg max is right."""
    counted = batch.weight == 1.0
    return (logits.argmax(-1) == batch.target)[counted].float().mean().item()
