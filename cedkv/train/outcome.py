"""What the loop leaves behind: the rows of its traces, and the memory it ended with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cedkv.evaluate import StressResult
from cedkv.train.keep import Kept


@dataclass(slots=True)
class Traces:
    """Rows of the trace artifacts, as they come."""

    loss: list[dict[str, Any]] = field(default_factory=list)
    dual: list[dict[str, Any]] = field(default_factory=list)
    topk: list[dict[str, Any]] = field(default_factory=list)
    mass: list[dict[str, Any]] = field(default_factory=list)
    slots: list[dict[str, Any]] = field(default_factory=list)
    warn: list[dict[str, Any]] = field(default_factory=list)
    proxy: list[dict[str, float | int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the loop ended: the step, and of the memory that is kept its k and its stress.

    `kept`: the eval tick it is from, where that is the best feasible one; None where it is the last memory.
    """

    step: int
    k: int
    stress: StressResult
    kept: Kept | None = None
