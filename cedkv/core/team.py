"""The processes of one launch, which compute one run together: who computes what, and how the others come by it.

Work is cut into units the way one process would cut it, and the units are dealt. What a unit gives is computed by one
process and reaches the others bit for bit, so that the number of processes changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class LostProcessError(RuntimeError):
    """Another process of the launch is gone, or stands still."""


class Team:
    """One process alone: everything is dealt to it, and nothing is exchanged. Teams of more are subclasses.

    Every method but `deal` is a meeting: all processes of the team have to call it, in the same order.
    """

    rank = 0
    size = 1
    local_size = 1
    """Processes of the team on this machine."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the log."""
        return self.rank == 0

    def deal(self, costs: Sequence[float]) -> list[int]:
        """Numbers of the units that this process computes, ascending; `costs` of all of them, in any unit.

        The largest first, each to whoever has least: no process gets more than the fair share and one unit.

        >>> Team().deal([3.0, 1.0])
        [0, 1]
        """
        loads = [0.0] * self.size
        mine = []
        for unit in sorted(range(len(costs)), key=lambda unit: -costs[unit]):
            whose = loads.index(min(loads))
            loads[whose] += costs[unit]
            if whose == self.rank:
                mine.append(unit)
        return sorted(mine)

    def merge(self, *parts: Tensor) -> None:
        """Fill up tensors in place: of each entry one process holds the value, the others zero (all bits)."""
        if self.size > 1:
            for part in parts:
                if part.numel():
                    self._merge(part)

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of the processes."""
        found = torch.zeros(self.size, dtype=torch.int32)
        found[self.rank] = int(flag)
        self.merge(found)
        return bool(found.any())

    def tell(self, content: bytes) -> bytes:
        """What the first process has to say; the others' `content` is ignored."""
        return self.gather(content if self.first else b"")[0]

    def gather(self, content: bytes) -> list[bytes]:
        """What each process has to say, in the order of their ranks."""
        if self.size == 1:
            return [content]
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(content)
        self.merge(lengths)
        told = [torch.zeros(int(length), dtype=torch.uint8) for length in lengths]
        if content:
            told[self.rank] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.merge(*told)
        return [bytes(part.numpy()) for part in told]

    def check_equal(self, parts: Iterable[Tensor], what: str) -> None:
        """Raise `RuntimeError` where the processes do not hold the same bits; `what` names them."""
        if self.size == 1:
            return
        sums = torch.zeros(self.size, dtype=torch.int64)
        for part in parts:
            words = bits(part.detach().cpu().contiguous()).to(torch.int64)
            # Wraps around, as a checksum may.
            sums[self.rank] = sums[self.rank] * 31 + (words * torch.arange(1, len(words) + 1)).sum()
        self.merge(sums)
        if len(set(sums.tolist())) > 1:
            raise RuntimeError(
                f"{what} is not the same in all processes ({sums.tolist()}): their machines or libraries compute differently"
            )

    def _merge(self, part: Tensor) -> None:
        raise NotImplementedError


ALONE = Team()


def bits(part: Tensor) -> Tensor:
    """A flat view of a tensor's bits as integers: their sum with zeros loses nothing, no sign of a zero and no NaN.

    Raises:
        ValueError: a tensor that does not lie in one piece.
    """
    if not part.is_contiguous():
        raise ValueError("only a tensor in one piece can be merged in place")
    flat = part.view(-1).view(torch.uint8)
    aligned = flat.numel() % 4 == 0 and part.storage_offset() * part.itemsize % 4 == 0
    return flat.view(torch.int32) if aligned else flat
