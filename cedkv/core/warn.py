"""When a violated constraint deserves a warning: only after several eval ticks in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WarnState:
    """Where the watch stands after a tick.

    ``consecutive``: ticks in a row over the limit so far; ``triggered``: patience is exhausted at this tick;
    ``onset``: this is the first tick of the row at which it is.
    """

    consecutive: int = 0
    triggered: bool = False
    onset: bool = False


@dataclass(frozen=True, slots=True)
class ConstraintWarn:
    """Triggers when a value lies above ``limit + margin`` for ``patience`` eval ticks in a row.

    ``limit`` and ``margin`` are in the unit of the value (nats), ``patience`` in ticks.
    """

    limit: float
    margin: float
    patience: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and math.isfinite(self.margin)):
            raise ValueError(f"limit is {self.limit} and margin {self.margin}; both need to be finite")
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}; give a number of eval ticks, 1 or more")

    def observe(self, state: WarnState, value: float) -> WarnState:
        """The state after one eval tick.

        A NaN neither proves a violation nor clears one: the count stands still and nothing triggers at that tick.
        """
        if math.isnan(value):
            return WarnState(consecutive=state.consecutive)
        if value <= self.limit + self.margin:
            return WarnState()
        consecutive = state.consecutive + 1
        triggered = consecutive >= self.patience
        return WarnState(consecutive, triggered, onset=triggered and state.consecutive < self.patience)
