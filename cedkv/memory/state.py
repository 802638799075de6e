"""What is injected: slots with keys and values, for one or many states.

Shapes: N states, L layers, H kv heads, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class States:
    """Keys and values per injected layer, each [N, H, S, D]; keys are post-RoPE, at the distance the prompt meets them.

    `positions` [S] is set for whole documents only, N of one length: where each slot stands relative to the first token
    of the input, ascending. Layers with a sliding window then hide slots out of their reach, as in the teacher's context; such rows
    must not be padded. Slots of a memory have no positions: every prompt token sees them at every injected layer.
    """

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keys.keys() != self.values.keys() or not self.keys:
            raise ValueError(
                f"layers of keys {sorted(self.keys)} and values {sorted(self.values)} must be equal and not empty"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The injected layers, ascending."""
        return tuple(sorted(self.keys))

    @property
    def count(self) -> int:
        """N, the number of states."""
        return next(iter(self.keys.values())).shape[0]

    @property
    def slots(self) -> int:
        """S, the slots of each state at each layer."""
        return next(iter(self.keys.values())).shape[2]

    def select(self, rows: Tensor) -> States:
        """The states `rows` [R] (indices, repeats allowed), in that order."""
        pick = {layer: (self.keys[layer][rows], self.values[layer][rows]) for layer in self.layers}
        return States(
            {i: k for i, (k, _) in pick.items()}, {i: v for i, (_, v) in pick.items()}, self.positions
        )

    def detach(self) -> States:
        """The same states, cut off from the graph."""
        return States(
            {i: k.detach() for i, k in self.keys.items()},
            {i: v.detach() for i, v in self.values.items()},
            self.positions,
        )

    def to(self, device: torch.device) -> States:
        """The same states on `device`."""
        return States(
            {i: k.to(device) for i, k in self.keys.items()},
            {i: v.to(device) for i, v in self.values.items()},
            None if self.positions is None else self.positions.to(device),
        )

    def empty(self) -> States:
        """The same layers without a slot: injecting it is injecting nothing."""
        return States(
            {i: k[:, :, :0] for i, k in self.keys.items()}, {i: v[:, :, :0] for i, v in self.values.items()}
        )

    @staticmethod
    def stack(parts: list[States]) -> States:
        """One `States` of all `parts`, which share layers, slot count and positions.

        Raises:
            ValueError: slots that stand elsewhere in one part than in another, or only in one of them.
        """
        layers, positions = parts[0].layers, parts[0].positions
        for part in parts:
            if not _same_positions(part.positions, positions):
                raise ValueError("states whose slots stand at different positions cannot be one")
        return States(
            {i: torch.cat([p.keys[i] for p in parts]) for i in layers},
            {i: torch.cat([p.values[i] for p in parts]) for i in layers},
            positions,
        )


def _same_positions(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
