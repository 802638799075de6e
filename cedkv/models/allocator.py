"""Large tensors on a CPU, freed and made again at every pass: keep their memory instead of giving it back each time."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Tell glibc to keep what this process frees, for what it allocates next; elsewhere nothing happens.

    By default every tensor over 32 MiB is mapped anew, and the kernel fills its pages with zeros one by one: a fifth of
    the time of a stress evaluation on a CPU. The process stays as large as it once was. Whoever has set glibc's own
    `MALLOC_…` variables is left alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    adjust(_MMAP_THRESHOLD, _LARGE)
    adjust(_TRIM_THRESHOLD, _LARGE)
