"""The floor: how long this machine takes for nothing but the products that a stress evaluation needs.

The products of `cedkv.bench.macs` are run as they are, with the model's own weights and as many rows as a pass has,
into buffers that are there already: no norm, no softmax, no KL, no Python between them that matters. The multiply-adds
of attention are few and are taken at the rate of these products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.bench.macs import Asked, Work, needed
from cedkv.evaluate import columns_of
from cedkv.injection.tree import Packed
from cedkv.injection.trunk import Trunk
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward pass needs under each of its `states` states."""

    states: int
    work: Work


def asked(packed: Packed) -> Asked:
    """The positions of a batch, without padding."""
    depths: list[int] = []
    ends: list[int] = []
    for nodes, deep, last in zip(
        packed.nodes.tolist(), packed.depths.tolist(), packed.ends.tolist(), strict=True
    ):
        depths += dict(zip(nodes, deep, strict=True)).values()
        ends += (deep[place] for place in set(last))
    return Asked(tuple(depths), tuple(ends))


class Floor:
    """The needed products of the stress evaluation of a trunk, ready to run."""

    def __init__(self, model: CausalLM, states: States, trunk: Trunk, batch_rows: int) -> None:
        self.passes = [
            Pass(columns.numel(), work)
            for packed in trunk.product(range(len(trunk)), batch_rows, states.count)
            for work in (needed(model, states, asked(packed)),)
            for columns in columns_of(states, packed, batch_rows)
        ]
        self._device = model.device
        self._rooms: dict[int, Tensor] = {}

    @property
    def macs(self) -> int:
        """Multiply-adds of all passes."""
        return sum(each.states * each.work.macs for each in self.passes)

    @torch.no_grad()
    def seconds(self, synchronise: Callable[[], object]) -> float:
        """Run them; the attention's multiply-adds are taken at the rate of these products."""
        synchronise()
        started = time.perf_counter()
        for each in self.passes:
            for product in each.work.products:
                rows = each.states * product.positions
                out, inner = product.weight.shape
                torch.mm(
                    self._room(rows, inner, product.weight),
                    product.weight.t(),
                    out=self._room(rows, out, product.weight, 1),
                )
        synchronise()
        return (time.perf_counter() - started) * self.macs / self.linear

    @property
    def linear(self) -> int:
        """Multiply-adds with weights, of all passes."""
        return sum(each.states * each.work.linear for each in self.passes)

    def _room(self, rows: int, width: int, like: Tensor, which: int = 0) -> Tensor:
        """A buffer [rows, width]; one block of memory for all inputs, one for all outputs."""
        have = self._rooms.get(which)
        if have is None or have.numel() < rows * width:
            have = self._rooms[which] = torch.randn(rows * width, device=self._device, dtype=like.dtype)
        return have[: rows * width].view(rows, width)


def square_rate(
    size: int, dtype: torch.dtype, device: torch.device, synchronise: Callable[[], object]
) -> float:
    """Multiply-adds per second of one square product of `size`: the median of five."""
    left, right, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    seconds = []
    for _ in range(6):
        synchronise()
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronise()
        seconds.append(time.perf_counter() - started)
    return float(size**3 / sorted(seconds[1:])[2])
