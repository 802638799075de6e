"""How many candidates a slot may mix as training goes on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


def topk_at(progress: float, schedule: Sequence[int], milestones: Sequence[float]) -> int:
    """The k in force at ``progress = step / steps``, in [0, 1]: that of the last milestone reached.

    Raises:
        ValueError: lengths differ, milestones do not start at 0 or do not rise, or ``progress`` is outside [0, 1].

    >>> [topk_at(p, (32, 16, 8, 4), (0, 0.25, 0.6, 0.85)) for p in (0.0, 0.25, 0.59, 0.99)]
    [32, 16, 16, 4]
    """
    if len(schedule) != len(milestones) or not schedule:
        raise ValueError(
            f"{len(schedule)} values of k for {len(milestones)} milestones; give one milestone for each k"
        )
    rising = all(earlier < later for earlier, later in pairwise(milestones))
    if milestones[0] != 0 or not rising:
        raise ValueError(f"milestones are {list(milestones)}; they start at 0 and rise")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}; it is step / steps, in [0, 1]")
    return schedule[bisect_right(milestones, progress) - 1]
