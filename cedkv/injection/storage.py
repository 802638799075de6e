"""Room for what passes over fixed prompts share: on the model's device as far as a budget goes, beyond it in a file.

The file is mapped into memory: the operating system keeps of it what it has room for, and reads back the rest. It has no
name from the start on and is gone with the last tensor in it, however a run ends.
"""

from __future__ import annotations

import math
import os
import tempfile

import torch
from torch import Tensor

from cedkv.core.errors import UserError

GIB = 1 << 30


class Room:
    """Hands out tensors until `gib` of memory are spent; then out of files in the folder for temporary ones."""

    def __init__(self, gib: float = math.inf) -> None:
        self.left = gib * GIB

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with nothing meaningful in it; where it lies in a file, on the CPU.

        Raises:
            UserError: the folder for temporary files has no room either.
        """
        size = math.prod(shape) * dtype.itemsize
        if size <= self.left:
            self.left -= size
            return torch.empty(shape, dtype=dtype, device=device)
        handle, name = tempfile.mkstemp(prefix="cedkv-trunk-")
        try:
            # All of it now: a mapping of a file that has holes dies when the disk is full.
            os.posix_fallocate(handle, 0, size)
            return torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
        except OSError as failed:
            raise UserError(
                f"no room for {size} bytes of hidden states in {tempfile.gettempdir()} ({failed.strerror}): raise "
                "phase3.eval.trunk_memory_gib, or name a larger folder in TMPDIR"
            ) from failed
        finally:
            os.close(handle)
            os.unlink(name)  # noqa: PTH108 - the mapping stays


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """The `rows` (any shape) of `x`, wherever it lies, on the device of `rows`."""
    found = x.index_select(0, rows.flatten().to(x.device)).view(*rows.shape, *x.shape[1:])
    return found.to(rows.device)
