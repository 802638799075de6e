"""Order statistics of a risk: the empirical quantile and its distribution-free upper bound. No torch.

A quantile here is always a value that was measured, never interpolated between two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache


def order_statistic_quantile(values: Iterable[float], q: float = 0.99) -> float:
    """The ``ceil(q * n)``-th smallest of ``n`` values.

    ``q`` is read as the decimal it prints as, so that ``0.07 * 100`` is 7 and not 7.000000000000001.

    Raises:
        ValueError: no values, a NaN among them, or ``q`` outside (0, 1].

    >>> order_statistic_quantile(range(1, 101), 0.99)
    99.0
    """
    ordered = _sorted(values)
    return ordered[quantile_rank(len(ordered), q) - 1]


def quantile_rank(n: int, q: float = 0.99) -> int:
    """Rank ``ceil(q * n)`` (1 = smallest) of the empirical quantile of ``n`` values, ``q`` read as a decimal."""
    if not 0.0 < q <= 1.0:
        raise ValueError(f"q is {q}; a quantile level lies in (0, 1]")
    return math.ceil(Fraction(repr(float(q))) * n)


@lru_cache(maxsize=256)
def upper_bound_rank(n: int, q: float = 0.99, confidence: float = 0.95) -> int | None:
    """Rank ``r`` (1 = smallest) whose order statistic bounds the true ``q`` quantile from above.

    The smallest ``r`` with ``BinomCDF(r - 1; n, q) >= confidence``: whatever the distribution, ``X_(r)`` is at least
    its ``q`` quantile with that confidence, over samples of ``n`` independent draws. ``None`` where ``n`` is too small
    for any rank (fewer than 299 at 0.99 and 0.95).

    >>> 2048 - upper_bound_rank(2048) + 1  # the 13th largest
    13
    """
    if n < 1:
        raise ValueError(f"n is {n}; a bound needs at least one sample")
    if not (0.0 < q < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"q is {q} and confidence {confidence}; both lie strictly between 0 and 1")
    # Counted from the top: how many samples may lie above the bound. BinomCDF(r-1; n, q) >= c says that the chance of
    # at most n - r successes, each of probability 1 - q, is at most 1 - c.
    allowed = -1
    chance = 0.0
    while True:
        chance += _binomial_pmf(allowed + 1, n, 1.0 - q)
        if chance > 1.0 - confidence:
            break
        allowed += 1
    return n - allowed if allowed >= 0 else None


def upper_bound(values: Iterable[float], q: float = 0.99, confidence: float = 0.95) -> float:
    """Distribution-free upper confidence bound on the ``q`` quantile, in the unit of ``values``.

    ``inf`` where there are too few samples for any bound (see ``upper_bound_rank``). Raises ``ValueError`` for no
    values or a NaN among them.
    """
    ordered = _sorted(values)
    rank = upper_bound_rank(len(ordered), q, confidence)
    return math.inf if rank is None else ordered[rank - 1]


def exceedances(values: Iterable[float], threshold: float) -> int:
    """How many values lie strictly above ``threshold``. Raises ``ValueError`` for no values or a NaN among them."""
    return sum(value > threshold for value in _sorted(values))


def clopper_pearson_upper(exceeded: int, n: int, confidence: float) -> float:
    """Exact upper confidence bound on the rate at which a limit is exceeded, after ``exceeded`` of ``n`` did.

    The largest rate at which so few exceedances still have probability ``1 - confidence`` (Clopper and Pearson, 1934).
    It is at most ``1 - q`` exactly when `upper_bound` of the same values, at the same confidence, is at most the limit.

    >>> round(clopper_pearson_upper(12, 2048, 0.95), 6)
    0.009476
    """
    if not 0 <= exceeded <= n or n < 1:
        raise ValueError(
            f"{exceeded} of {n} is no count of exceedances: give 0 <= exceeded <= n, n at least 1"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it lies strictly between 0 and 1")
    if exceeded == n:
        return 1.0
    from scipy.special import betaincinv  # a quarter of a second, for the one command that asks

    return float(betaincinv(exceeded + 1, n - exceeded, confidence))


def _sorted(values: Iterable[float]) -> list[float]:
    ordered = [float(value) for value in values]
    if not ordered:
        raise ValueError("values is empty; an order statistic needs at least one measurement")
    missing = sum(math.isnan(value) for value in ordered)
    if missing:
        raise ValueError(
            f"{missing} of {len(ordered)} values are NaN; a NaN has no rank: find out why it was measured"
        )
    ordered.sort()
    return ordered


def _binomial_pmf(k: int, n: int, p: float) -> float:
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
