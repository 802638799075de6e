"""The machine that measures, in a few facts."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("cedkv", "torch", "transformers", "peft")


def facts(device: str, dtype: str) -> dict[str, str | int | None]:
    """Versions, processor, device and threads. A package that is not installed has the version None."""
    on_gpu = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": device,
        "dtype": dtype,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def line(found: dict[str, str | int | None]) -> str:
    """The facts in one sentence."""
    where = found["gpu"] or found["cpu"]
    packages = ", ".join(f"{name} {found[name]}" for name in PACKAGES[1:] if found[name])
    return (
        f"{where}, {found['threads']} of {found['cpus']} CPUs, {found['device']}, {found['dtype']}; {packages}, "
        f"python {found['python']}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name; Linux keeps it in a file, elsewhere Python may know it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
