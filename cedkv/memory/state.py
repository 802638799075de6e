"""What is injected: slots with keys and values, for one or many states.

Shapes: N states, L layers, H kv heads, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """The slots of N states at one layer: keys [N, H, S, D], values [N, H, S, E], biases as in `States`."""

    key: Tensor
    value: Tensor
    bias: Tensor | None = None

    def bias_of(self, heads: int) -> Tensor:
        """The bias of each of `heads` query heads: [N, heads, S].

        Raises:
            ValueError: there is none.
        """
        if self.bias is None:
            raise ValueError("these slots have no bias")
        return self.bias.repeat_interleave(heads // self.bias.shape[1], dim=1)


@dataclass(frozen=True, slots=True)
class States:
    """Keys and values per injected layer, each [N, H, S, D]; keys are post-RoPE, at the distance the prompt meets them.

    `positions` [S] is set for whole documents only, N of one length: where each slot stands relative to the first token
    of the input, ascending. Layers with a sliding window then hide slots out of their reach, as in the teacher's context; such rows
    must not be padded. Slots of a memory have no positions: every prompt token sees them at every injected layer.

    `bias` per injected layer is added to the slots' attention scores, [N, Q, S] for Q query heads, or for each of the H kv
    heads with all of its query heads; nothing is added where it is None.
    """

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    positions: Tensor | None = None
    bias: Mapping[int, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.keys.keys() != self.values.keys() or not self.keys:
            raise ValueError(
                f"layers of keys {sorted(self.keys)} and values {sorted(self.values)} must be equal and not empty"
            )
        if self.bias is not None and self.bias.keys() != self.keys.keys():
            raise ValueError(
                f"layers of keys {sorted(self.keys)} and biases {sorted(self.bias)} must be equal"
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

    @property
    def bytes_each(self) -> int:
        """What one state takes: keys, values and biases, in the types they are in."""
        tensors = [*self.keys.values(), *self.values.values(), *(self.bias or {}).values()]
        return sum(x.numel() * x.element_size() for x in tensors) // self.count

    def at(self, layer: int, rows: Tensor | None = None) -> LayerSlots:
        """What is injected at `layer`, of the states `rows` [R] (all by default)."""

        def chosen(x: Tensor) -> Tensor:
            return x if rows is None else x[rows]

        bias = None if self.bias is None else chosen(self.bias[layer])
        return LayerSlots(chosen(self.keys[layer]), chosen(self.values[layer]), bias)

    def select(self, rows: Tensor) -> States:
        """The states `rows` [R] (indices, repeats allowed), in that order."""
        return self._each(lambda x: x[rows])

    def detach(self) -> States:
        """The same states, cut off from the graph."""
        return self._each(Tensor.detach)

    def to(self, device: torch.device) -> States:
        """The same states on `device`."""
        moved = self._each(lambda x: x.to(device))
        return moved if self.positions is None else replace(moved, positions=self.positions.to(device))

    def empty(self) -> States:
        """The same layers without a slot: injecting it is injecting nothing."""
        return replace(self._each(lambda x: x[:, :, :0]), positions=None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> States:
        """`change` done to every tensor [N, H, S, ...]."""
        keys, values, bias = (
            None if tensors is None else {layer: change(tensors[layer]) for layer in self.layers}
            for tensors in (self.keys, self.values, self.bias)
        )
        assert keys is not None
        assert values is not None
        return replace(self, keys=keys, values=values, bias=bias)

    @staticmethod
    def stack(parts: list[States]) -> States:
        """One `States` of all `parts`, which share layers, slot count and positions.

        Raises:
            ValueError: slots that stand elsewhere in one part than in another, or only in one of them; the same of biases.
        """
        layers, positions = parts[0].layers, parts[0].positions
        for part in parts:
            if not _same_positions(part.positions, positions):
                raise ValueError("states whose slots stand at different positions cannot be one")
        biased = [p.bias for p in parts if p.bias is not None]
        if biased and len(biased) < len(parts):
            raise ValueError("states with biases and states without cannot be one")
        return States(
            {i: torch.cat([p.keys[i] for p in parts]) for i in layers},
            {i: torch.cat([p.values[i] for p in parts]) for i in layers},
            positions,
            {i: torch.cat([bias[i] for bias in biased]) for i in layers} if biased else None,
        )


def _same_positions(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
