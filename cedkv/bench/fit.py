"""How something grows: the exponent of a power law, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exponent:
    """y ~ x^value by least squares on logarithms; `error` is its standard error, NaN with fewer than three points."""

    value: float
    error: float


def exponent(x: Sequence[float], y: Sequence[float]) -> Exponent:
    """The slope of log y over log x.

    Raises:
        ValueError: fewer than two different x, or numbers without a logarithm.

    >>> exponent([1, 2, 4], [3, 6, 12])
    Exponent(value=1.0, error=0.0)
    """
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"x {list(x)}, y {list(y)}: a power law needs two different x, and positive numbers")
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    n, mean_u, mean_v = len(u), sum(u) / len(u), sum(v) / len(v)
    square = sum((a - mean_u) ** 2 for a in u)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / square
    left = sum((b - mean_v - slope * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    error = math.sqrt(left / (n - 2) / square) if n > 2 else math.nan
    return Exponent(round(slope, 12), round(error, 12))
