"""The floor: how long this machine takes for nothing but the products that a stress evaluation needs.

The products of `cedkv.bench.macs` are run as they are, with the model's own weights and as many rows as a pass has,
into buffers that are there already: no norm, no softmax, no KL, no Python between them that matters. The multiply-adds
of attention are few and are taken at the rate of these products.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.bench.macs import Work, needed
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class Pass:
    """`pairs` pairs in one forward pass, and how many such passes there are."""

    length: int
    pairs: int
    count: int


def passes(lengths: Iterable[int], states: int, batch_rows: int) -> list[Pass]:
    """The passes over prompts of these lengths under every state: one length each, at most `batch_rows` rows.

    >>> passes([5, 5, 5, 9], states=2, batch_rows=4)
    [Pass(length=5, pairs=4, count=1), Pass(length=5, pairs=2, count=1), Pass(length=9, pairs=2, count=1)]
    """
    found: Counter[tuple[int, int]] = Counter()
    at_once = max(1, batch_rows // states)
    columns = [min(batch_rows, states - start) for start in range(0, states, batch_rows)]
    for length, prompts in sorted(Counter(lengths).items()):
        for start in range(0, prompts, at_once):
            for width in columns:
                found[length, min(at_once, prompts - start) * width] += 1
    return [Pass(length, pairs, count) for (length, pairs), count in found.items()]


class Floor:
    """The needed products of a stress evaluation, ready to run."""

    def __init__(self, model: CausalLM, states: States, lengths: Sequence[int], batch_rows: int) -> None:
        self.passes = passes(lengths, states.count, batch_rows)
        self.work: list[Work] = [needed(model, states, each.length) for each in self.passes]
        self._device = model.device
        self._rooms: dict[int, Tensor] = {}

    @property
    def macs(self) -> int:
        """Multiply-adds of all passes."""
        return sum(p.count * p.pairs * w.macs for p, w in zip(self.passes, self.work, strict=True))

    @torch.no_grad()
    def seconds(self, synchronise: Callable[[], object]) -> float:
        """Run one pass of each kind; what all of them would take."""
        total = 0.0
        for each, work in zip(self.passes, self.work, strict=True):
            synchronise()
            started = time.perf_counter()
            for product in work.products:
                rows = each.pairs * product.positions
                out, inner = product.weight.shape
                torch.mm(
                    self._room(rows, inner, product.weight),
                    product.weight.t(),
                    out=self._room(rows, out, product.weight, 1),
                )
            synchronise()
            spent = time.perf_counter() - started
            total += each.count * spent * work.macs / work.linear
        return total

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
