"""Prompts as a tree: where they begin alike, a causal model says the same, so it need be asked only once.

A *node* is a token behind everything before it. Packed into one row, prompts share the nodes of their common beginnings;
each node sees its own path only, at its own depth, so every layer computes for it what it would in its prompt alone.

Shapes: M nodes in all, B rows, U nodes of a row, K ends of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forest:
    """All nodes of some prompts: the token of each, its depth, and per prompt the path from its first token on."""

    tokens: Tensor  # [M]
    depths: Tensor  # [M]
    paths: tuple[Ids, ...]


def grow(prompts: Sequence[Ids]) -> Forest:
    """The nodes of `prompts`, numbered as they first occur."""
    known: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    depths: list[int] = []
    paths = []
    for prompt in prompts:
        path: list[int] = []
        for depth, token in enumerate(prompt):
            key = (path[-1] if path else -1, token)
            if key not in known:
                known[key] = len(tokens)
                tokens.append(token)
                depths.append(depth)
            path.append(known[key])
        paths.append(tuple(path))
    return Forest(
        torch.tensor(tokens, dtype=torch.long), torch.tensor(depths, dtype=torch.long), tuple(paths)
    )


@dataclass(frozen=True, slots=True)
class Tree:
    """Some prompts, by index, in one row: their nodes, the place of each node's parent (-1: none), and of their ends.

    `ends` are places of distinct nodes; `picks` holds for every member the indices into `ends` of its last positions.
    """

    members: tuple[int, ...]
    nodes: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]
    picks: tuple[Ids, ...]


def plant(members: Sequence[int], paths: Sequence[Ids], keep: Sequence[int]) -> Tree:
    """One row of the prompts `members` with their `paths`, of which the last `keep` positions matter."""
    place: dict[int, int] = {}
    parents: list[int] = []
    ends: dict[int, int] = {}
    picks = []
    for path, last in zip(paths, keep, strict=True):
        before = -1
        for node in path:
            if node not in place:
                place[node] = len(parents)
                parents.append(before)
            before = place[node]
        picks.append(tuple(ends.setdefault(place[node], len(ends)) for node in path[-last:]))
    return Tree(tuple(members), tuple(place), tuple(parents), tuple(ends), tuple(picks))


def partition(prompts: Sequence[Ids], *, nodes: int, members: int, worth: float) -> list[list[int]]:
    """Indices of `prompts` in groups that begin alike, of at most `nodes` nodes (but one prompt) and `members` prompts.

    A prompt joins a group where what it shares saves more than it costs that its nodes are scored against those of the
    group, which they do not see: a node of a layer is worth `worth` pairs of nodes.
    """
    groups: list[list[int]] = []
    before: Ids = ()
    size = 0
    for index in sorted(range(len(prompts)), key=prompts.__getitem__):
        prompt = prompts[index]
        # In sorted order the longest common beginning with the whole group is that with the last member.
        common = _common(before, prompt)
        new = len(prompt) - common
        fits = size + new <= nodes and len(groups[-1]) < members if groups else False
        if fits and common * worth >= 2 * (size - common) * new:
            groups[-1].append(index)
            size += new
        else:
            groups.append([index])
            size = len(prompt)
        before = prompt
    return groups


def _common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Packed:
    """B trees as one batch, shorter ones padded behind their last node.

    `ends` are padded in front by repeating the first, so that the last ones of a row are its last positions.
    `member`, `row` and `end` say, for each of the X positions that matter, whose it is and where in [B, K] it stands.
    """

    nodes: Tensor  # [B, U] numbers of the nodes; padding repeats the first node
    depths: Tensor  # [B, U]
    visible: Tensor  # [B, U, U] bool: whether a node sees another
    ends: Tensor  # [B, K] places in the row
    member: Tensor  # [X] members of the trees, in turn, each as often as it has positions that matter
    row: Tensor  # [X]
    end: Tensor  # [X]

    def windowed(self, window: int | None) -> Tensor:
        """`visible` [B, U, U] in a layer whose positions see the last `window` of their path."""
        if window is None:
            return self.visible
        return self.visible & (self.depths[:, :, None] - self.depths[:, None, :] < window)

    def at_ends(self, x: Tensor) -> Tensor:
        """What `x` [R, U, ...] holds at the ends, [R, K, ...]: R is B or a multiple, each row then several times."""
        if self.ends.shape[0] == 1:
            return x[:, self.ends[0]]
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return x[rows, self.ends.repeat_interleave(x.shape[0] // self.ends.shape[0], 0)]


def pack(trees: Sequence[Tree], depths: Tensor, device: torch.device) -> Packed:
    """A batch of `trees`, on `device`; `depths` [M] of all nodes."""
    width, most = max(len(tree.nodes) for tree in trees), max(len(tree.ends) for tree in trees)
    nodes = torch.tensor([[*t.nodes, *t.nodes[:1] * (width - len(t.nodes))] for t in trees])
    ends = torch.tensor([[*t.ends[:1] * (most - len(t.ends)), *t.ends] for t in trees])
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in zip(visible.numpy(), trees, strict=True):
        for place, parent in enumerate(tree.parents):
            if parent >= 0:
                row[place] |= row[parent]
    where = [
        (member, row, most - len(tree.ends) + end)
        for row, tree in enumerate(trees)
        for member, picks in zip(tree.members, tree.picks, strict=True)
        for end in picks
    ]
    tensors = (nodes, depths[nodes], visible, ends, *torch.tensor(where).unbind(1))
    return Packed(*(tensor.to(device) for tensor in tensors))


def batches(trees: Sequence[Tree], *, rows: int, states: int, padding: float) -> Iterator[list[Tree]]:
    """`trees` in batches of at most `rows` (member x state), or one tree; those of like size together.

    Args:
        padding: how many times as long as its shortest tree the longest one of a batch may be.
    """
    batch: list[Tree] = []
    most = 0  # members of a tree
    for tree in sorted(trees, key=lambda tree: len(tree.nodes)):
        larger = max(most, len(tree.members))
        full = (len(batch) + 1) * larger * states > rows
        if batch and (full or len(tree.nodes) > padding * len(batch[0].nodes)):
            yield batch
            batch, larger = [], len(tree.members)
        batch.append(tree)
        most = larger
    if batch:
        yield batch
