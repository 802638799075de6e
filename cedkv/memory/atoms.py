"""Atoms: a document's tokens as post-RoPE keys and values at the layers of interest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cedkv.memory.state import States


@dataclass(frozen=True, slots=True)
class Atoms:
    """Every token of one document: its atom type, and per captured layer its key and value [H, D, head_dim].

    `types` holds None for special tokens, which are never candidates. `positions` [D] is where the tokens stand
    relative to the first token read behind them: -D to -1.
    """

    document: str
    types: tuple[str | None, ...]
    positions: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    def as_states(self) -> States:
        """The whole document as one state: injected at all layers it stands for the teacher's context."""
        keys = {i: k[None] for i, k in self.keys.items()}
        return States(keys, {i: v[None] for i, v in self.values.items()}, self.positions)

    def at_layers(self, layers: tuple[int, ...]) -> Atoms:
        """These atoms at `layers` only."""
        keys, values = ({i: x[i] for i in layers} for x in (self.keys, self.values))
        return Atoms(self.document, self.types, self.positions, keys, values)
