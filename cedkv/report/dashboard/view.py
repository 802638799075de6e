"""The runs that a dashboard looks at: what every panel reads. Built anew for every drawing, from what is remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from cedkv import ledger
from cedkv.core.verdict import Verdict
from cedkv.report.dashboard.spec import Limit
from cedkv.tracking.record import RunRecord, Series

if TYPE_CHECKING:
    from cedkv.report.dashboard.alerts import Alert

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunView:
    """One run: its record, the history of its metrics, and ways to its verdict and its artifacts.

    Args:
        rows: reads an artifact; ``None`` where the run has none of that name.
        verdict: judges the run, or says nothing where it has not ended.
    """

    record: RunRecord
    history: Mapping[str, Series]
    rows: Callable[[str], Rows | None]
    verdict: Callable[[], Verdict | None]

    @property
    def label(self) -> str:
        """How the run is called beside others: its name and the beginning of its id."""
        return f"{self.record.name} ({self.record.run_id[:8]})"

    def last(self, metric: str) -> float | None:
        """The last finite value of a metric."""
        value = self.record.metrics.get(metric)
        if value is None and metric in self.history:
            value = next(reversed(self.history[metric].values), None)
        return value if value is not None and math.isfinite(value) else None

    def named(self, pattern: str) -> list[str]:
        """The run's metrics that a name or pattern means, in the ledger's order of atom types and parts, then by name."""
        if "*" not in pattern:
            return [pattern] if pattern in self.history else []
        # A copy: a refresh for another reader may add metrics meanwhile.
        return sorted((name for name in list(self.history) if fnmatchcase(name, pattern)), key=_place)

    def limit(self, limit: Limit) -> float | None:
        """Where a limit lies for this run; None where its configuration holds no such number."""
        at, times = self._value(limit.at), 1.0 if limit.times is None else self._value(limit.times)
        return None if at is None or times is None else at * times

    def _value(self, value: float | str) -> float | None:
        if not isinstance(value, str):
            return float(value)
        found: Any = self.record.config
        for key in value.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


@dataclass(frozen=True, slots=True)
class View:
    """What one drawing looks at.

    Args:
        runs: the runs looked at; panels of a single run show the first ones.
        listed: every run of the experiment, without artifacts.
        baseline: finds the Phase 2 run on the same data as a run, if there is one.
        alerts: holds the warning rules of all pages against a run.
        also: looks at further runs of the experiment, by their ids.
    """

    runs: Sequence[RunView]
    listed: Sequence[RunRecord]
    baseline: Callable[[RunView], RunView | None]
    alerts: Callable[[RunView], Sequence[Alert]]
    also: Callable[[Sequence[str]], Sequence[RunView]]


def limit_label(limit: Limit, at: float) -> str:
    """What stands beside a threshold line."""
    return f"{limit.label or (limit.at if isinstance(limit.at, str) else 'limit')} {at:.4g}"


def short_key(key: str) -> str:
    """A key of the configuration without the sections it is in; any other name as it is."""
    return key.rpartition(".")[2] if key.startswith("phase3.") else key


_ORDER = {
    name: place
    for place, name in enumerate(
        (*map(ledger.atom_mass, ledger.ATOM_TYPES), *map(ledger.seconds, ledger.PARTS))
    )
}


def _place(name: str) -> tuple[int, str]:
    return _ORDER.get(name, len(_ORDER)), name
