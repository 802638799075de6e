"""The dual variable of the tail constraint: lambda_off follows a smoothed p99, slowly and within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class DualState:
    """Where the dual stands. ``p99_ema`` (nats) is None before the first finite measurement.

    ``delta`` is what the last update added to lambda before the range was applied; ``skipped`` says that the last
    measurement was not finite, and ``skipped_total`` how many were so far.
    """

    lambda_off: float
    p99_ema: float | None = None
    delta: float = 0.0
    skipped: bool = False
    skipped_total: int = 0


@dataclass(frozen=True, slots=True)
class DualRule:
    """How lambda_off moves.

    At each update: ``ema = ema_beta * ema + (1 - ema_beta) * p99_raw`` (the first measurement starts it),
    ``delta = clip(eta * (ema - threshold), -delta_clip, +delta_clip)``, then
    ``lambda_off = clip(lambda_off + delta, lambda_min, lambda_max)``. All in float64.

    ``threshold`` is in nats, ``update_every`` in steps. Raises ``ValueError`` for values that make no rule.
    """

    eta: float
    ema_beta: float
    update_every: int
    lambda_min: float
    lambda_max: float
    delta_clip: float
    threshold: float

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; the dual rule needs finite numbers")
        if not 0.0 <= self.ema_beta < 1.0:
            raise ValueError(f"ema_beta is {self.ema_beta}; the share of the past lies in [0, 1)")
        if self.update_every < 1:
            raise ValueError(f"update_every is {self.update_every}; give a number of steps, 1 or more")
        if self.lambda_min < 0.0 or self.lambda_min > self.lambda_max:
            raise ValueError(
                f"lambda range is [{self.lambda_min}, {self.lambda_max}]; it needs 0 <= lambda_min <= lambda_max"
            )
        if self.eta < 0.0 or self.delta_clip < 0.0:
            raise ValueError(f"eta is {self.eta} and delta_clip {self.delta_clip}; neither may be negative")

    def due(self, step: int) -> bool:
        """Whether lambda is updated at this step (counted from 0)."""
        return step % self.update_every == 0

    def update(self, state: DualState, p99_raw: float) -> DualState:
        """The state after one measurement (nats). One that is not finite changes neither lambda nor the average."""
        raw = float(p99_raw)
        if not math.isfinite(raw):
            return replace(state, delta=0.0, skipped=True, skipped_total=state.skipped_total + 1)
        ema = raw if state.p99_ema is None else self.ema_beta * state.p99_ema + (1.0 - self.ema_beta) * raw
        delta = _clip(self.eta * (ema - self.threshold), -self.delta_clip, self.delta_clip)
        lambda_off = _clip(state.lambda_off + delta, self.lambda_min, self.lambda_max)
        return replace(state, lambda_off=lambda_off, p99_ema=ema, delta=delta, skipped=False)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
