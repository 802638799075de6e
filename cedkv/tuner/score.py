"""What a run is worth to a study: its objective, and how far it breaks each constraint. From logged metrics alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cedkv.tuner.spec import Spec, limit_of


@dataclass(frozen=True, slots=True)
class Score:
    """Objective, smaller is better; how far each constraint is broken, 0 or less where it is kept; what both were made from."""

    objective: float
    broken: Mapping[str, float]
    metrics: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return all(value <= 0.0 for value in self.broken.values())

    @property
    def excess(self) -> float:
        """The sum of what is broken."""
        return math.fsum(max(0.0, value) for value in self.broken.values())


def score(
    spec: Spec, config: Mapping[str, Any], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> Score:
    """The score of one run.

    Args:
        spec: what counts.
        config: the resolved configuration that limits are taken from.
        metrics: the last values of the run's metrics.
        baseline: those of the Phase 2 run on the same data.

    Constraints are relative to their limit where that is not 0, so that they can be added. A metric that is missing or not
    finite breaks its constraint by infinity and makes the objective infinite.
    """
    objective = math.fsum(
        weight * _finite(metrics.get(name)) for name, weight in spec.objective.items() if weight
    )
    broken = {}
    for name, bound in spec.constraints.items():
        limit, value = limit_of(bound, name, config), _finite(metrics.get(name))
        if bound.least is not None:
            over = limit - (-math.inf if math.isinf(value) else value)
        elif bound.drop is not None:
            over = math.inf if math.isinf(value) else _finite(baseline.get(name)) - value - limit
        else:
            over = value - limit
        broken[name] = over / abs(limit) if limit else over
    read = {*spec.objective, *spec.constraints}
    return Score(objective, broken, {name: metrics[name] for name in sorted(read) if name in metrics})


def together(scores: Sequence[Score]) -> Score:
    """The score of one configuration over several seeds: the mean objective, and the worst of each constraint."""
    names = {name: None for one in scores for name in one.broken}
    metrics = {name: None for one in scores for name in one.metrics}
    return Score(
        statistics.fmean(one.objective for one in scores),
        {name: max(one.broken.get(name, math.inf) for one in scores) for name in names},
        {
            name: statistics.fmean(one.metrics[name] for one in scores)
            for name in metrics
            if all(name in one.metrics for one in scores)
        },
    )


def noise(repeated: Sequence[Sequence[float]]) -> float:
    """Pooled standard deviation of objectives of one configuration over seeds; 0 where nothing was repeated."""
    groups = [group for group in repeated if len(group) > 1 and all(map(math.isfinite, group))]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return 0.0
    return math.sqrt(math.fsum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom)


def is_contender(so_far: Score, best: float | None, sigma: float) -> bool:
    """Whether another seed could tell: nothing is broken, and the objective is not clearly over the best one's.

    ``sigma``: standard deviation of one run's objective over seeds. Without a best everyone is a contender.
    """
    return so_far.feasible and (best is None or so_far.objective - sigma <= best)


def _finite(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else float(value)
