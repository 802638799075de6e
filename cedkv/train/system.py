"""What a run asks of the machine, for the system metrics of MLflow's pages (`tracking.system_metrics`)."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import torch

from cedkv import ledger

_STATM = Path("/proc/self/statm")


class SystemMetrics:
    """CPU and memory of this process since the last look, and memory of its GPU."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def look(self) -> dict[str, float]:
        """Metrics by name: CPU in percent of one core, memory in megabytes."""
        wall, cpu = time.perf_counter(), time.process_time()
        busy = 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        found = {"cpu_utilization_percentage": busy, "process_memory_megabytes": _resident() / 1e6}
        if torch.cuda.is_available():
            found["gpu_memory_megabytes"] = torch.cuda.memory_allocated() / 1e6
        return {ledger.SYSTEM_PREFIX + name: value for name, value in found.items()}


def _resident() -> float:
    """Bytes of memory this process holds now; the most it held where the system does not say."""
    if _STATM.exists():
        return float(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
