"""Steps whose loss or gradient is not finite: each is skipped and counted, too many in a row end the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


class NonFiniteError(RuntimeError):
    """As many steps in a row as `train.nonfinite_patience` allows were not finite. The run ends FAILED, its memory logged."""


@dataclass(slots=True)
class FiniteWatch:
    """Tells steps that may move the memory from those that must not.

    Args:
        patience: steps in a row that are not finite before the run is lost.
        warn: called with one line when, after a finite step, one is not.
    """

    patience: int
    warn: Callable[[str], None]
    total: int = 0
    """Skipped steps so far."""
    streak: int = 0
    """Of them, those in a row up to now."""
    began: str = ""
    """Where the last such row began."""

    def observe(self, step: int, values: Mapping[str, float], prompts: Sequence[str]) -> bool:
        """Whether every value of a step is finite, so that it may move the memory.

        Args:
            step: counted from 0.
            values: losses and gradient norm by name.
            prompts: ids of the ON prompts that it was made of, for the report.
        """
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            self.streak = 0
            return True
        if not self.streak:
            self.began = f"step {step} ({', '.join(broken)}; ON prompts {', '.join(prompts[:4])})"
            self.warn(f"not finite at {self.began}: the step is skipped")
        self.total += 1
        self.streak += 1
        return False

    @property
    def lost(self) -> bool:
        """Whether patience is spent."""
        return self.streak >= self.patience

    def check(self) -> None:
        """Raise `NonFiniteError` where patience is spent."""
        if self.lost:
            raise NonFiniteError(
                f"{self.streak} steps in a row were not finite, since {self.began}; the memory is as it was before: lower "
                "phase3.train.lr, or use model.dtype float32 or bfloat16"
            )
