"""Fixed prompts, computed once up to the first injected layer: whoever measures or trains a memory starts there.

Below the first injected layer a prompt's hidden states are the same for the base model and for every state. A `Trunk`
keeps them; `cedkv.injection.resume` runs the model's own code from there on, in three steps that each save more:

`TRUNK`  the layers below the first injected one pass their input on; that layer gets the kept hidden states.
`TAIL`   the last layer computes keys and values for all positions, and everything else for the last ones only.
`MERGE`  in the first injected layer the prompt's attention to itself is kept as well, with its log-sum-exp, and the
         slots' attention is merged into it: its projections of query, key and value are never computed again.

Nothing is approximated; `cedkv.evaluate.choose_shortcut` measures on a probe how far each is from the plain pass.

Shapes: P prompts of one length T, R rows (prompt, state), H query heads, G kv heads, S slots, D head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cedkv.injection.attention import AttentionCall, observe
from cedkv.injection.masks import causal_mask
from cedkv.models.layers import decoder_layers

Ids = tuple[int, ...]


class NoShortcutError(RuntimeError):
    """A model whose layers do not allow a shortcut; the message says why."""


class Shortcut(IntEnum):
    """What a pass over fixed prompts leaves out; each includes the ones before."""

    PLAIN = 0
    TRUNK = 1
    TAIL = 2
    MERGE = 3


@dataclass(frozen=True, slots=True)
class OwnAttention:
    """The first injected layer's attention of prompts to themselves: query and output [P, H, T, D], log-sum-exp [P, H, T].

    Output and log-sum-exp are float32.
    """

    query: Tensor
    out: Tensor
    lse: Tensor
    scaling: float

    def take(self, rows: Tensor, last: int | None = None) -> OwnAttention:
        """That of `rows` [R], at the `last` positions only where a number is given."""
        at = slice(None) if last is None else slice(-last, None)
        return OwnAttention(
            self.query[rows][:, :, at], self.out[rows][:, :, at], self.lse[rows][:, :, at], self.scaling
        )

    def merged(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Each prompt under a state of its own: output [R, H, T, D] and the weights of the slots [R, H, T, S], float32.

        Two softmaxes over disjoint keys combine by their log-sum-exps, as in FlashAttention's blocks (Dao et al., 2022).

        Args:
            key, value: [R, G, S, D].
        """
        groups = self.query.shape[1] // key.shape[1]
        key, value = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
        scores = self.query.float() @ key.transpose(-1, -2) * self.scaling
        lse = torch.logaddexp(self.lse, scores.logsumexp(-1))
        weights = (scores - lse[..., None]).exp()
        return weights @ value + (self.lse - lse).exp()[..., None] * self.out, weights

    def merged_with_all(self, key: Tensor, value: Tensor) -> Tensor:
        """Every prompt under every one of N states: output [P, N, H, T, D], as `merged` gives it row by row.

        The queries of all prompts meet the slots of all states in one matrix product per kv head.

        Args:
            key, value: [N, G, S, D].
        """
        (prompts, heads, length, _), (states, kv_heads, slots, size) = self.query.shape, value.shape
        shape = (prompts, kv_heads, heads // kv_heads, length)
        query, own = (
            x.float().view(*shape, -1).transpose(0, 1).flatten(1, 3) for x in (self.query, self.out)
        )
        own_lse = (
            self.lse.view(shape).transpose(0, 1).flatten(1)[:, None]
        )  # [G, 1, X], X = prompts, heads, tokens
        keys = key.float().permute(1, 3, 0, 2).flatten(2)
        scores = (query @ keys * self.scaling).unflatten(2, (states, slots)).transpose(1, 2)  # [G, N, X, S]
        lse = torch.logaddexp(own_lse, scores.logsumexp(-1))
        merged = (scores - lse[..., None]).exp() @ value.float().transpose(0, 1)
        merged += (own_lse - lse).exp()[..., None] * own[:, None]
        merged = merged.view(kv_heads, states, prompts, heads // kv_heads, length, size)
        return merged.permute(2, 1, 0, 3, 4, 5).flatten(2, 3)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Prompts of one length, and what the base model says behind their last `keep` positions.

    `hidden` is what enters the first injected layer, `own` that layer's attention; each None where nothing resumes there.
    """

    members: Tensor  # [P] places in the trunk
    ids: Tensor  # [P, T]
    keep: int
    hidden: Tensor | None  # [P, T, hidden size]
    own: OwnAttention | None
    base: Tensor  # [P, keep, V] log-probabilities


def own_attention(call: AttentionCall) -> OwnAttention:
    """What one layer's attention of prompts to themselves gives, in float32.

    Raises:
        NoShortcutError: scores that do not combine by their log-sum-exp alone (a soft cap, sinks).
    """
    if call.softcap is not None or call.sinks is not None:
        raise NoShortcutError("attention with a soft cap or sinks is not merged")
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x.float().repeat_interleave(groups, dim=1) for x in (call.key, call.value))
    scores = call.query.float() @ key.transpose(-1, -2) * call.scaling
    mask = causal_mask(key.shape[2], key.shape[2], key.device) if call.mask is None else call.mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    return OwnAttention(call.query, scores.softmax(-1) @ value, scores.logsumexp(-1), call.scaling)


def joined(parts: Sequence[OwnAttention]) -> OwnAttention:
    """One of all prompts."""
    query, out, lse = (torch.cat([getattr(part, name) for part in parts]) for name in ("query", "out", "lse"))
    return OwnAttention(query, out, lse, parts[0].scaling)


def log_probs(model: PreTrainedModel, ids: Tensor, keep: int) -> Tensor:
    """Log-probabilities [B, keep, V] behind the last `keep` positions of unpadded rows, at least float32."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep).logits[
        :, -keep:
    ]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class Trunk(Sequence[Ids]):
    """A sequence of prompts that remembers what enters the first injected layer.

    Args:
        model: frozen.
        prompts: ids of every prompt, as the bare model gets them.
        first_layer: index of the first injected layer.
        shortcut: what passes over these prompts may leave out.
        keep: how many of the last positions matter, for each prompt; 1 by default.
        batch_rows: prompts per forward pass while it is made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Ids],
        first_layer: int,
        *,
        shortcut: Shortcut,
        keep: Sequence[int] | None = None,
        batch_rows: int = 256,
    ) -> None:
        self._prompts = tuple(prompts)
        self._model, self.first_layer, self.shortcut = model, first_layer, shortcut
        self._buckets: list[Bucket] = []
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, prompt in enumerate(self._prompts):
            groups[len(prompt), 1 if keep is None else keep[place]].append(place)
        for (_, last), members in sorted(groups.items()):
            self._buckets.append(self._bucket(members, last, batch_rows))
        self._where = {
            place: (bucket, row)
            for bucket, found in enumerate(self._buckets)
            for row, place in enumerate(found.members.tolist())
        }

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Ids: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Ids, ...]: ...
    def __getitem__(self, index: int | slice) -> Ids | tuple[Ids, ...]:
        return self._prompts[index]

    def groups(self, places: Sequence[int], prompts: int) -> Iterator[tuple[list[int], Bucket, Tensor]]:
        """The prompts at `places` in groups of one length, at most `prompts` each.

        Yields the indices into `places`, the bucket, and the rows [P] in it.
        """
        found: dict[int, list[int]] = defaultdict(list)
        for index, place in enumerate(places):
            found[self._where[place][0]].append(index)
        for bucket, indices in sorted(found.items()):
            for start in range(0, len(indices), prompts):
                part = indices[start : start + prompts]
                rows = torch.tensor([self._where[places[i]][1] for i in part], device=self._model.device)
                yield part, self._buckets[bucket], rows

    def take(self, places: Iterable[int]) -> Part:
        """The prompts at `places`, in that order."""
        return Part(self, tuple(places))

    @torch.no_grad()
    def _bucket(self, members: list[int], keep: int, batch_rows: int) -> Bucket:
        ids = torch.tensor([self._prompts[i] for i in members], device=self._model.device)
        parts = [self._captured(part, keep) for part in ids.split(batch_rows)]
        hidden = [part[0] for part in parts if part[0] is not None]
        own = [part[1] for part in parts if part[1] is not None]
        return Bucket(
            members=torch.tensor(members),
            ids=ids,
            keep=keep,
            hidden=torch.cat(hidden) if hidden else None,
            own=joined(own) if own else None,
            base=torch.cat([part[2] for part in parts]),
        )

    def _captured(self, ids: Tensor, keep: int) -> tuple[Tensor | None, OwnAttention | None, Tensor]:
        """One forward pass of the bare model: hidden states, own attention of the first layer, what it says."""
        hidden: list[Tensor] = []
        own: list[OwnAttention] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append((args[0] if args else kwargs["hidden_states"]).clone())

        with ExitStack() as stack:
            if self.shortcut >= Shortcut.TRUNK:
                layer = decoder_layers(self._model)[self.first_layer]
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if self.shortcut >= Shortcut.MERGE:
                look = (self.first_layer,)
                stack.enter_context(observe(self._model, look, lambda call: own.append(own_attention(call))))
            base = log_probs(self._model, ids, keep)
        return hidden[0] if hidden else None, own[0] if own else None, base


@dataclass(frozen=True, slots=True)
class Part(Sequence[Ids]):
    """Some prompts of a trunk, in their own order."""

    trunk: Trunk
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Iterable[int]) -> Part:
        """Those of its prompts, in that order."""
        return Part(self.trunk, tuple(self.places[i] for i in indices))

    @overload
    def __getitem__(self, index: int) -> Ids: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Ids, ...]: ...
    def __getitem__(self, index: int | slice) -> Ids | tuple[Ids, ...]:
        if isinstance(index, slice):
            return tuple(self.trunk[place] for place in self.places[index])
        return self.trunk[self.places[index]]
