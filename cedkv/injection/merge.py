"""Attention that is known, and slots that come to it: two softmaxes over disjoint keys combine by their log-sum-exps.

As in FlashAttention's blocks (Dao et al., 2022). All of it in float32, or float64 where the model is.

Shapes: B rows, N states, H query heads, G kv heads, U positions, S slots, D head size of keys, E of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.injection.calls import AttentionCall, last_of, wide
from cedkv.memory.state import LayerSlots


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores a key: query · key · scaling, softly capped where the family does so."""

    scaling: float
    softcap: float | None

    def __call__(self, query: Tensor, key_t: Tensor) -> Tensor:
        """Scores of `query` [..., Q, D] and `key_t` [..., D, T]."""
        scores = (query * self.scaling) @ key_t
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()


@dataclass(frozen=True, slots=True)
class OwnAttention:
    """A layer's attention of positions to their own past: query [B, U, H, D], output [B, U, H, E], log-sum-exp [B, U, H]."""

    query: Tensor
    out: Tensor
    lse: Tensor
    scoring: Scoring

    def merged(self, slots: LayerSlots) -> tuple[Tensor, Tensor]:
        """Row b with the slots of the b-th of B states: output [B, U, H, E] and the weights of the slots [B, H, U, S]."""
        groups = self.query.shape[2] // slots.key.shape[1]
        key, value = (x.to(self.out.dtype).repeat_interleave(groups, dim=1) for x in (slots.key, slots.value))
        scores = self.scoring(wide(self.query).transpose(1, 2), key.transpose(-1, -2))
        if slots.bias is not None:
            scores = scores + slots.bias_of(self.query.shape[2]).to(scores.dtype)[:, :, None]
        own = self.lse.transpose(1, 2)
        lse = torch.logaddexp(own, scores.logsumexp(-1))
        weights = (scores - lse[..., None]).exp()
        out = weights @ value + (own - lse).exp()[..., None] * self.out.transpose(1, 2)
        return out.transpose(1, 2), weights

    def merged_with_all(self, slots: LayerSlots) -> Tensor:
        """Every row under every one of N states, without a graph: [B, N, U, H, E], as `merged` gives it row by row.

        The queries of all rows meet the slots of all states in one matrix product per kv head.
        """
        key, value = slots.key, slots.value
        (rows, length, heads, _), (states, kv_heads, count, size) = self.query.shape, value.shape
        shape = (rows * length, kv_heads, heads // kv_heads)
        query, own = (
            wide(x).reshape(*shape, -1).transpose(0, 1).flatten(1, 2) for x in (self.query, self.out)
        )
        # [G, 1, X], where X counts rows, positions and the heads of a group.
        own_lse = self.lse.reshape(shape).transpose(0, 1).flatten(1)[:, None]
        scores = self.scoring(query, key.to(query.dtype).permute(1, 3, 0, 2).flatten(2))
        scores = scores.unflatten(2, (states, count)).transpose(1, 2)  # [G, N, X, S]
        if slots.bias is not None:
            bias = slots.bias_of(heads).to(scores.dtype).unflatten(1, (kv_heads, -1)).transpose(0, 1)
            scores = (scores.unflatten(2, (rows * length, -1)) + bias[:, :, None]).flatten(2, 3)
        lse = torch.logaddexp(own_lse, scores.logsumexp(-1))
        out = own[:, None] * (own_lse - lse).exp()[..., None]
        weights = (scores - lse[..., None]).exp_()
        values = value.to(query.dtype).transpose(0, 1).flatten(0, 1)
        out.view(-1, *out.shape[2:]).baddbmm_(weights.flatten(0, 1), values)
        out = out.view(kv_heads, states, rows, length, heads // kv_heads, size)
        return out.permute(2, 1, 3, 0, 4, 5).flatten(3, 4)


def own_attention(call: AttentionCall, queries: int | None = None) -> OwnAttention:
    """What one layer's attention of whole rows gives, in float32: at all positions, or at the last `queries`.

    Where slots are injected they are part of it.
    """
    queries = call.query.shape[2] if queries is None else queries
    scores = call.scores(queries)
    lse = scores.logsumexp(-1)
    if call.sinks is not None:  # a sink takes weight and gives nothing
        lse = torch.logaddexp(lse, wide(call.sinks)[None, :, None])
    groups = call.query.shape[1] // call.value.shape[1]
    out = (scores - lse[..., None]).exp() @ wide(call.value).repeat_interleave(groups, dim=1)
    scoring = Scoring(call.scaling, call.softcap)
    query = last_of(call.query, call.last, queries)
    return OwnAttention(query.transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2), scoring)
