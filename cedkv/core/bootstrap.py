"""How sure is an improvement of a tail? A paired bootstrap over prompts. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cedkv.core.stats import quantile_rank

RESAMPLES = 2000
SEED = 3407


def quantile_reduction_interval(
    now: Sequence[float], then: Sequence[float], *, q: float = 0.99, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of ``1 - quantile(now) / quantile(then)``, two measurements of the same prompts.

    Prompts are drawn with replacement, each with both of its values (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), so that what makes a prompt hard cancels out. Both quantiles are order statistics.
    The same values give the same interval: the generator has a seed of its own.

    Args:
        now, then: ``[n]``, finite, non-negative, in one unit; entry i of both belongs to the same prompt.

    Returns:
        Lower and upper end. A resample whose earlier quantile is zero counts as no reduction.

    Raises:
        ValueError: the lengths differ, there are no values, or one is not finite.
    """
    after, before = np.asarray(now, dtype=np.float64), np.asarray(then, dtype=np.float64)
    if after.shape != before.shape or after.ndim != 1 or not after.size:
        raise ValueError(
            f"{after.size} values now and {before.size} then; a paired bootstrap needs one of each for every prompt"
        )
    if not (np.isfinite(after).all() and np.isfinite(before).all()):
        raise ValueError("a value is not finite; find out why it was measured")
    n = after.size
    place = quantile_rank(n, q) - 1
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.integers(n, size=(RESAMPLES, n))
    late, early = (np.partition(values[drawn], place, axis=1)[:, place] for values in (after, before))
    reductions = np.sort(1.0 - np.divide(late, early, out=np.ones_like(late), where=early > 0))
    tail = (1.0 - confidence) / 2.0
    low = int(tail * RESAMPLES)
    return float(reductions[low]), float(reductions[-1 - low])
