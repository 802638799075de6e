"""Room for what passes over fixed prompts share: on the model's device as far as a budget goes, beyond it in a file.

The file is mapped into memory: the operating system keeps of it what it has room for, and reads back the rest. It has no
name from the start on and is gone with the last tensor in it, however a run ends.

Processes of one team on the CPUs of one machine share one mapping, and fill it together. On GPUs, and on several
machines, each has its own.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.core.team import ALONE, Team

GIB = 1 << 30
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - files there are created by mkstemp
"""Where Linux keeps files in memory: there a mapping is never written to a disk."""


class Room:
    """Hands out tensors until `gib` of memory are spent; then out of files in the folder for temporary ones.

    In a team, `empty` and `share` are meetings.
    """

    def __init__(self, gib: float = math.inf, team: Team = ALONE) -> None:
        self.left, self._team = gib * GIB, team

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with nothing meaningful in it, in a team all zeros; where it lies in a file, on the CPU.

        Raises:
            UserError: the folder for temporary files has no room either.
        """
        size = math.prod(shape) * dtype.itemsize
        fits = size <= self.left
        self.left -= size if fits else 0
        if self._common(device):
            return self._opened(shape, dtype, fits)
        if fits:
            alone = self._team.size == 1
            return (torch.empty if alone else torch.zeros)(shape, dtype=dtype, device=device)
        handle, name = self._file(size, None)
        try:
            return _mapped(name, shape, dtype)
        finally:
            os.close(handle)
            os.unlink(name)  # noqa: PTH108 - the mapping stays

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Every process gets what the others wrote to `tensors`, which `empty` handed out."""
        private = [x for x in tensors if not self._common(x.device)]
        self._team.merge(*private)
        self._team.any(False)  # whoever goes on finds what the others wrote to common mappings

    def _common(self, device: torch.device) -> bool:
        """Whether the team has one mapping of a tensor."""
        return self._team.size > 1 and self._team.local_size == self._team.size and device.type == "cpu"

    def _opened(self, shape: tuple[int, ...], dtype: torch.dtype, fits: bool) -> Tensor:
        """A tensor in the file that the first process makes."""
        handle, name = -1, ""
        if self._team.first:
            try:
                handle, name = self._file(math.prod(shape) * dtype.itemsize, IN_MEMORY if fits else None)
            except UserError:
                self._team.tell(b"")
                raise
        name = self._team.tell(name.encode()).decode()
        if not name:
            raise SystemExit(2)  # the first process says why
        try:
            found = _mapped(name, shape, dtype)
            self._team.any(False)  # everyone has it open
        finally:
            if self._team.first:
                os.close(handle)
                os.unlink(name)  # noqa: PTH108 - the mapping stays
        return found

    @staticmethod
    def _file(size: int, folder: Path | None) -> tuple[int, str]:
        """A new file of `size` bytes, all zeros, open: in `folder` if that has room, else in the temporary one."""
        for place in filter(None, (folder, Path(tempfile.gettempdir()))):
            handle, name = -1, ""
            try:
                handle, name = tempfile.mkstemp(prefix="cedkv-trunk-", dir=place)
                # All of it now: a mapping of a file that has holes dies when the disk is full.
                os.posix_fallocate(handle, 0, size)
            except OSError as error:
                failed = error
                if name:
                    os.close(handle)
                    os.unlink(name)  # noqa: PTH108
            else:
                return handle, name
        raise UserError(
            f"no room for {size} bytes of hidden states in {tempfile.gettempdir()} ({failed.strerror}): raise "
            "phase3.eval.trunk_memory_gib, or name a larger folder in TMPDIR"
        ) from failed


def _mapped(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def gathered(
    found: Mapping[int, Tensor], lengths: Sequence[int], team: Team, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Tensors [length, V] of which each process of a team has `found` some, all of them in their order.

    They are copies only where the team has more than one process. V may be unknown to a process that found none.
    """
    if team.size == 1:
        return [found[i] for i in range(len(lengths))]
    widths = torch.zeros(team.size, dtype=torch.int64)
    widths[team.rank] = next((x.shape[1] for x in found.values()), 0)
    team.merge(widths)
    room = Room(team=team)
    whole = room.empty((sum(lengths), int(widths.max())), dtype, device)
    parts = list(whole.split(list(lengths)))
    for i, x in found.items():
        parts[i].copy_(x)
    room.share([whole])
    return parts


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """The `rows` (any shape) of `x`, wherever it lies, on the device of `rows`."""
    found = x.index_select(0, rows.flatten().to(x.device)).view(*rows.shape, *x.shape[1:])
    return found.to(rows.device)
