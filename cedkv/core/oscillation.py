"""How a dual variable moved: does it ring, when does it settle, how much violation did it take, does it do its work? No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BAND = 0.25
"""Distance from its last value within which lambda counts as settled."""


@dataclass(frozen=True, slots=True)
class Oscillation:
    """Of the last third of the updates (rounded up): standard deviation and peak-to-peak of lambda.

    ``settling_tick``: the first update from which on lambda stays within ``BAND`` of its last value.
    ``violation``: sum over updates of ``max(0, p99 - threshold)`` times the steps between them, in nats · steps.
    """

    std: float
    peak_to_peak: float
    settling_tick: int
    violation: float


def oscillation(
    lambdas: Sequence[float], p99s: Sequence[float], *, threshold: float, update_every: int
) -> Oscillation:
    """What a trace of the dual says; entry i of both is update i. A p99 that is not finite adds no violation.

    Raises:
        ValueError: no updates, or not as many of the one as of the other.

    >>> oscillation([2.0, 2.1, 2.0, 2.1, 2.0, 2.1], [0.0] * 6, threshold=0.05, update_every=5).settling_tick
    0
    >>> round(oscillation([1.0, 4.0, 2.0], [0.25, 0.05, 0.0], threshold=0.05, update_every=5).violation, 12)
    1.0
    """
    if not lambdas or len(lambdas) != len(p99s):
        raise ValueError(
            f"{len(lambdas)} values of lambda and {len(p99s)} of p99: give one of each per update"
        )
    last = lambdas[-math.ceil(len(lambdas) / 3) :]
    mean = math.fsum(last) / len(last)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in last) / len(last))
    outside = [tick for tick, value in enumerate(lambdas) if abs(value - lambdas[-1]) > BAND]
    over = math.fsum(max(0.0, p99 - threshold) for p99 in p99s if math.isfinite(p99))
    return Oscillation(std, max(last) - min(last), outside[-1] + 1 if outside else 0, over * update_every)


def tracking(
    lambdas: Sequence[float],
    p99s: Sequence[float],
    *,
    start: float,
    target: float,
    lambda_min: float,
    lambda_max: float,
) -> float:
    """How far lambda moves per update to where the p99 it was told asks it to go: the mean, in units of lambda.

    Up where the p99 is over its target, down where it is under. A controller that stands still has no oscillation, and 0 here;
    one that answers late, as behind a long average, moves against what is measured, and may be under 0. Left out are updates
    whose p99 is not finite or at its target, and those at which lambda stood at the bound it was asked to cross.

    Args:
        lambdas: lambda after each update.
        p99s: what was measured for each, in nats.
        start: lambda before the first update.
        target: the p99 that lambda aims at, in nats.
        lambda_min, lambda_max: the bounds.

    Returns:
        NaN where no update is left.

    Raises:
        ValueError: not as many values of lambda as of the p99.

    >>> round(tracking([0.6, 0.7, 0.6], [0.2, 0.2, 0.01], start=0.5, target=0.05, lambda_min=0.0, lambda_max=10.0), 12)
    0.1
    >>> round(tracking([0.6, 0.7, 0.8], [0.2, 0.01, 0.01], start=0.5, target=0.05, lambda_min=0.0, lambda_max=10.0), 12)
    -0.033333333333
    >>> tracking([0.5, 0.5, 0.5], [0.2, 0.2, 0.01], start=0.5, target=0.05, lambda_min=0.0, lambda_max=10.0)
    0.0
    """
    moves = []
    before = start
    for value, p99 in zip(lambdas, p99s, strict=True):
        error = p99 - target
        blocked = before >= lambda_max if error > 0 else before <= lambda_min
        if math.isfinite(p99) and error != 0.0 and not blocked:
            moves.append(math.copysign(1.0, error) * (value - before))
        before = value
    return math.fsum(moves) / len(moves) if moves else math.nan
