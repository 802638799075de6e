"""The dual variable of the tail constraint: lambda_off follows a smoothed p99, slowly and within bounds.

Linearised, where the p99 falls by ``gain`` nats for each unit of lambda at the next measurement and nothing is clipped, an
update is a linear map of (lambda, smoothed p99). Its poles say how the loop answers; ``poles`` gives them.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class DualState:
    """Where the dual stands. ``p99_ema`` (nats) is None before the first finite measurement.

    ``error``: how far the smoothed p99 was over the target at the last finite one, in nats.
    ``delta`` is what the last update added to lambda before the range was applied; ``skipped`` says that the last
    measurement was not finite, and ``skipped_total`` how many were so far.
    """

    lambda_off: float
    p99_ema: float | None = None
    error: float | None = None
    delta: float = 0.0
    skipped: bool = False
    skipped_total: int = 0


@dataclass(frozen=True, slots=True)
class DualRule:
    """How lambda_off moves.

    At each update: ``ema = ema_beta * ema + (1 - ema_beta) * p99_raw`` (the first measurement starts it),
    ``delta = clip(eta * (ema - threshold), -delta_clip, +delta_clip)``, then
    ``lambda_off = clip(lambda_off + delta, lambda_min, lambda_max)``. All in float64.

    Two options. ``gain_p`` makes it a PI controller (Sohrabi et al., "On PI controllers for updating Lagrange multipliers in
    constrained optimization", 2024): ``gain_p * (error - last error)`` is added before delta is clipped. What is integrated
    is lambda itself, so that nothing winds up while it stands at a bound. ``setpoint_margin`` aims below the threshold.

    ``threshold`` and ``setpoint_margin`` are in nats, ``update_every`` in steps. Raises ``ValueError`` for values that make
    no rule.
    """

    eta: float
    ema_beta: float
    update_every: int
    lambda_min: float
    lambda_max: float
    delta_clip: float
    threshold: float
    gain_p: float = 0.0
    setpoint_margin: float = 0.0

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
        if min(self.eta, self.delta_clip, self.gain_p, self.setpoint_margin) < 0.0:
            raise ValueError(
                f"eta is {self.eta}, delta_clip {self.delta_clip}, gain_p {self.gain_p} and setpoint_margin "
                f"{self.setpoint_margin}; none may be negative"
            )

    def due(self, step: int) -> bool:
        """Whether lambda is updated at this step (counted from 0)."""
        return step % self.update_every == 0

    def update(self, state: DualState, p99_raw: float) -> DualState:
        """The state after one measurement (nats). One that is not finite changes neither lambda nor the average."""
        raw = float(p99_raw)
        if not math.isfinite(raw):
            return replace(state, delta=0.0, skipped=True, skipped_total=state.skipped_total + 1)
        ema = raw if state.p99_ema is None else self.ema_beta * state.p99_ema + (1.0 - self.ema_beta) * raw
        error = ema - (self.threshold - self.setpoint_margin)
        rising = self.gain_p * (error - state.error) if self.gain_p and state.error is not None else 0.0
        delta = _clip(self.eta * error + rising, -self.delta_clip, self.delta_clip)
        lambda_off = _clip(state.lambda_off + delta, self.lambda_min, self.lambda_max)
        return replace(state, lambda_off=lambda_off, p99_ema=ema, error=error, delta=delta, skipped=False)


def cancelling_gain(eta: float, ema_beta: float) -> float:
    """The ``gain_p`` whose zero cancels the pole of the average: ``eta * ema_beta / (1 - ema_beta)``.

    What remains is a loop of first order, whose pole is ``1 - eta * gain``: it does not ring below ``eta * gain = 1``.

    >>> [round(abs(pole), 6) for pole in poles(0.05, 0.9, gain=4.0, gain_p=cancelling_gain(0.05, 0.9))]
    [0.8, 0.9]
    """
    return eta * ema_beta / (1.0 - ema_beta)


def poles(eta: float, ema_beta: float, gain: float, gain_p: float = 0.0) -> tuple[complex, complex]:
    """Poles of the linearised loop, the smaller first: the roots of ``z^2 - (1 + beta - (eta + gain_p) b) z + beta - gain_p b``.

    Here ``b = (1 - beta) gain``. With ``y`` the smoothed p99 over its target and ``x`` lambda over its rest point,
    ``y' = beta y - b x`` and ``x' = x + eta y' + gain_p (y' - y)``. The loop is stable when both poles lie inside the unit
    circle; it rings when they are complex, and then loses ``1 - |z|`` of its swing at each update.

    Without ``gain_p`` the product of the poles is beta: the loop rings for every ``eta (1 - beta) gain`` between
    ``(1 - sqrt(beta))^2`` and ``(1 + sqrt(beta))^2``, however small eta is made it dies out with ``sqrt(beta)`` per update.
    """
    b = (1.0 - ema_beta) * gain
    trace, determinant = 1.0 + ema_beta - (eta + gain_p) * b, ema_beta - gain_p * b
    root = cmath.sqrt(trace * trace - 4.0 * determinant)
    low, high = sorted(((trace - root) / 2.0, (trace + root) / 2.0), key=abs)
    return low, high


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
