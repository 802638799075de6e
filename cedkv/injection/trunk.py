"""Fixed prompts, computed once up to the first injected layer: whoever measures or trains a memory starts there.

Below the first injected layer a prompt's hidden states are the same for the base model and for every state. A `Trunk`
keeps them; `cedkv.injection.resume` runs the model's own code from there on, in steps that each save more:

`TRUNK`  the layers below the first injected one pass their input on; that layer gets the kept hidden states.
`TAIL`   the last layer computes keys and values for all positions, and everything else for the last ones only.
`MERGE`  in the first injected layer the prompt's attention to itself is kept as well, with its log-sum-exp, and the
         slots' attention is merged into it: its projections of query, key and value are never computed again.
`SHARE`  prompts that begin alike stand in one row, as a tree: what they share is computed once for each state.

Nothing is approximated; `cedkv.evaluate.choose_shortcut` measures on a probe how far each is from the plain pass.

The passes are dealt to the processes of a team, and what they give is shared: making a trunk, and going through its
prompts, is a meeting of all of them.

Shapes: P prompts of one length T, M nodes (see `cedkv.injection.tree`), V vocabulary, h hidden size, H query heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cedkv.core.team import ALONE, Team
from cedkv.injection.attention import observe
from cedkv.injection.merge import OwnAttention, Scoring, own_attention
from cedkv.injection.storage import Room, picked
from cedkv.injection.tree import Ids, Packed, Tree, batches, grow, pack, partition, plant
from cedkv.models.layers import decoder_layers, in_one_piece

TOKENS_OF_A_ROW = 32
"""A pass that makes a trunk has at most this many tokens for each of its `batch_rows`."""
PADDING_OF_MANY, PADDING_OF_FEW = 1.15, 1.5
"""The longest row of a batch is at most this many times as long as the shortest one: in a training step, with its few
rows, another pass costs more than padding."""
SMALLEST_TREE = 64
"""Nodes a row may have even where the model is small."""


class NoShortcutError(RuntimeError):
    """A model whose layers do not allow a shortcut; the message says why."""


class Shortcut(IntEnum):
    """What a pass over fixed prompts leaves out; each includes the ones before."""

    PLAIN = 0
    TRUNK = 1
    TAIL = 2
    MERGE = 3
    SHARE = 4


def log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis, at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class Trunk(Sequence[Ids]):
    """A sequence of prompts that remembers what enters the first injected layer.

    Args:
        model: frozen.
        prompts: ids of every prompt, as the bare model gets them.
        first_layer: index of the first injected layer.
        shortcut: what passes over these prompts may leave out.
        keep: how many of the last positions matter, for each prompt; 1 by default.
        batch_rows: prompts per forward pass while it is made (fewer where they are long).
        room: where to keep it all; in memory by default.
        team: the processes that share the passes; they have the same prompts.
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
        room: Room | None = None,
        team: Team = ALONE,
    ) -> None:
        self._prompts, self.team = tuple(prompts), team
        self._model, self.first_layer, self.shortcut = model, first_layer, shortcut
        self._keep = (1,) * len(self._prompts) if keep is None else tuple(keep)
        self._forest = grow(self._prompts)
        ends: dict[int, int] = {}
        for path, last in zip(self._forest.paths, self._keep, strict=True):
            for node in path[-last:]:
                ends.setdefault(node, len(ends))
        row_of_end = torch.full_like(self._forest.tokens, -1)
        row_of_end[list(ends)] = torch.arange(len(ends))
        self._row_of_end, self._tokens = row_of_end.to(model.device), self._forest.tokens.to(model.device)
        self._whole: dict[tuple[int, int], list[Packed]] = {}
        self._kept: dict[str, Tensor] = {}
        self._scoring: Scoring | None = None
        self._capture(batch_rows, room or Room(team=team), ends)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Ids: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Ids, ...]: ...
    def __getitem__(self, index: int | slice) -> Ids | tuple[Ids, ...]:
        return self._prompts[index]

    def take(self, places: Iterable[int]) -> Part:
        """The prompts at `places`, in that order."""
        return Part(self, tuple(places))

    # ---- what passes need --------------------------------------------------------------------------------------------

    def tokens(self, nodes: Tensor) -> Tensor:
        """Token ids at `nodes` [B, U]."""
        return picked(self._tokens, nodes)

    def hidden(self, nodes: Tensor) -> Tensor:
        """What enters the first injected layer at `nodes` [B, U]: [B, U, h]."""
        return picked(self._kept["hidden"], nodes)

    def own(self, nodes: Tensor) -> OwnAttention:
        """The first injected layer's attention of `nodes` [B, U] to themselves and what is before them."""
        assert self._scoring is not None
        query, out, lse = (picked(self._kept[name], nodes) for name in ("query", "out", "lse"))
        return OwnAttention(query, out, lse, self._scoring)

    def base(self, packed: Packed) -> Tensor:
        """Log-probabilities [B, K, V] of the base model at the ends."""
        rows = picked(self._row_of_end, packed.at_ends(packed.nodes))
        return log_probs(picked(self._kept["base"], rows))

    # ---- prompts in batches ------------------------------------------------------------------------------------------

    def product(self, places: Sequence[int], rows: int, states: int) -> Iterable[Packed]:
        """The prompts at `places` for passes of at most `rows` (prompt × state) each, under `states` states.

        Members are indices into `places`. From `Shortcut.SHARE` on, prompts share their beginnings. In a team, these are
        the passes of this process.
        """
        if list(places) != list(range(len(self))):
            return (packed for _, packed in self._product(places, rows, states))
        if (rows, states) not in self._whole:
            self._whole[rows, states] = [packed for _, packed in self._product(places, rows, states)]
        return self._whole[rows, states]

    def single(self, places: Sequence[int], rows: int | None = None) -> Dealt:
        """The prompts at `places`, each in a row of its own, at most `rows` in a pass (all by default).

        Members are indices into `places`, in no order. In a team, these are the passes of this process.
        """
        trees = [self._tree([i], places) for i in range(len(places))]
        return self._packed(trees, rows or len(places), 1, PADDING_OF_FEW)

    def _product(self, places: Sequence[int], rows: int, states: int) -> Dealt:
        if self.shortcut < Shortcut.SHARE:
            groups = [[i] for i in range(len(places))]
        else:
            size = self._model.config.get_text_config().hidden_size
            groups = partition(
                [self._prompts[place] for place in places],
                nodes=max(SMALLEST_TREE, size // 2),
                members=rows,
                # About 12 h² multiply-adds of a layer's weights for a node, 2 h of its attention for a pair of nodes.
                worth=6 * size,
            )
        return self._packed([self._tree(group, places) for group in groups], rows, states, PADDING_OF_MANY)

    def _tree(self, members: Sequence[int], places: Sequence[int]) -> Tree:
        paths = [self._forest.paths[places[i]] for i in members]
        return plant(members, paths, [self._keep[places[i]] for i in members])

    def _packed(self, trees: Sequence[Tree], rows: int, states: int, padding: float) -> Dealt:
        exact = self.shortcut is Shortcut.PLAIN
        passes = list(batches(trees, rows=rows, states=states, padding=1.0 if exact else padding))
        mine = self.team.deal([len(batch) * len(batch[-1].nodes) for batch in passes])
        return Dealt(
            len(passes), ((n, pack(passes[n], self._forest.depths, self._model.device)) for n in mine)
        )

    # ---- making it ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _capture(self, batch_rows: int, room: Room, ends: dict[int, int]) -> None:
        """Plain passes over prompts of one length; what a node gives is kept from the first prompt that comes to it."""
        count = len(self._forest.tokens)
        missing, unsaid = set(range(count)), set(ends)
        passes = list(self._passes(batch_rows))
        mine = set(self.team.deal([len(places) * len(self._prompts[places[0]]) for places, _ in passes]))
        for number, (places, keep) in enumerate(passes):
            paths = [self._forest.paths[place] for place in places]
            kept, nodes = _new([node for path in paths for node in path], missing)
            kept_ends, said = _new([node for path in paths for node in path[-keep:]], unsaid)
            if number and number not in mine:
                continue  # the first one tells every process what there is to keep
            hidden, own, logits = self._captured(places, keep)
            found = {} if hidden is None else {"hidden": hidden}
            if own is not None:
                self._scoring = own.scoring
                found |= {"query": own.query, "out": own.out, "lse": own.lse}
            if number not in mine:
                kept, nodes, kept_ends, said = [], [], [], []
            self._put(found, kept, nodes, count, room)
            self._put({"base": logits}, kept_ends, [ends[node] for node in said], len(ends), room)
        room.share(self._kept.values())

    def _put(
        self, found: Mapping[str, Tensor], kept: Sequence[int], rows: Sequence[int], count: int, room: Room
    ) -> None:
        """Keep of each of `found` [P, T, ...] the flat places `kept` as `rows` of `count`."""
        for name, x in found.items():
            if name not in self._kept:
                self._kept[name] = room.empty((count, *x.shape[2:]), x.dtype, x.device)
            into = self._kept[name]
            at = torch.tensor(rows, dtype=torch.long, device=into.device)
            into[at] = x.flatten(0, 1)[torch.tensor(kept, dtype=torch.long, device=x.device)].to(into.device)

    def _passes(self, batch_rows: int) -> Iterator[tuple[list[int], int]]:
        """Places of prompts of one length and one number of positions that matter."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, prompt in enumerate(self._prompts):
            groups[len(prompt), min(self._keep[place], len(prompt))].append(place)
        for (length, keep), places in sorted(groups.items()):
            rows = max(1, min(batch_rows, TOKENS_OF_A_ROW * batch_rows // length))
            for start in range(0, len(places), rows):
                yield places[start : start + rows], keep

    def _captured(
        self, places: Sequence[int], keep: int
    ) -> tuple[Tensor | None, OwnAttention | None, Tensor]:
        """One forward pass of the bare model: hidden states, own attention of the first layer, logits [P, keep, V]."""
        ids = torch.tensor([self._prompts[place] for place in places], device=self._model.device)
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
            logits = whole_pass(self._model, ids, keep)
        return hidden[0] if hidden else None, own[0] if own else None, logits


def whole_pass(model: PreTrainedModel, ids: Tensor, keep: int) -> Tensor:
    """Logits [B, keep, V] behind the last `keep` positions of unpadded rows."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    with in_one_piece(model):
        found = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep)
    return found.logits[:, -keep:]


def _new(nodes: list[int], missing: set[int]) -> tuple[list[int], list[int]]:
    """Places of those of `nodes` that were `missing`, and these nodes, which are missing no more."""
    places = []
    for place, node in enumerate(nodes):
        if node in missing:
            missing.remove(node)
            places.append(place)
    return places, [nodes[place] for place in places]


@dataclass(frozen=True, slots=True)
class Dealt(Iterable[tuple[int, Packed]]):
    """Of `total` passes those that this process computes, each with its number; to be gone through once."""

    total: int
    mine: Iterator[tuple[int, Packed]]

    def __iter__(self) -> Iterator[tuple[int, Packed]]:
        return self.mine


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
