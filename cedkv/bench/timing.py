"""Times of rivals that take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing: the median, and the quartiles as its spread."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third; of a single measurement, itself twice."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def rate(self, count: float) -> Spread:
        """`count` per unit of each measurement."""
        return Spread(tuple(count / value for value in self.values))

    def times(self, factor: float) -> Spread:
        """Each measurement, scaled."""
        return Spread(tuple(factor * value for value in self.values))


def interleaved(
    rivals: Mapping[str, Callable[[], object]], rounds: int, synchronise: Callable[[], object] = lambda: None
) -> dict[str, Spread]:
    """Seconds of each rival, measured in turns (A B C A B C ...) after a first turn that does not count.

    Args:
        rivals: what to run. One that returns a float has timed itself: these are its seconds.
        synchronise: called before the clock is read, where work goes on behind the caller's back (a GPU).
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, run in rivals.items():
            synchronise()
            started = time.perf_counter()
            own = run()
            synchronise()
            elapsed = time.perf_counter() - started
            if turn:
                seconds[name].append(own if isinstance(own, float) else elapsed)
    return {name: Spread(tuple(values)) for name, values in seconds.items()}


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one run, and what it gives."""
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def synchroniser(device: torch.device) -> Callable[[], object]:
    """What waits for `device`."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
