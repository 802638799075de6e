"""The most memory that a computation holds at once, beyond what lay there before it began."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Run, and tell the peak of tensor memory on `device` over what was held at the start.

    On a GPU torch's allocator keeps the number. On the CPU torch's profiler reports every allocation and release of
    tensor memory, here summed up in their order; what a library takes for itself inside of one product is not in it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    assert results is not None, "the profiler has run"
    held = most = 0
    for event in sorted(
        (event for event in results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    ):
        held += event.nbytes()
        most = max(most, held)
    return most
