"""The targets of the benchmark, from its numbers: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cedkv import ledger
from cedkv.bench.quality.options import METHODS

PHASE3, NO_MEMORY = "phase3", ("base", "full_context")
EQUAL_ON = 0.05
"""An ON gain that is at most this much under Phase 3's counts as equal."""
TIMES, OVERHEAD = 10.0, 0.05


@dataclass(frozen=True, slots=True)
class Target:
    """What was wanted, what was measured, and whether that is it."""

    name: str
    measured: str
    met: bool


def targets(
    rows: Mapping[str, Mapping[str, float]], costs: Mapping[str, float | None], limit: float
) -> list[Target]:
    """Judge the means over seeds of every method: the best ON under the limit, the p99 at equal ON, the cost per token.

    Nothing is judged without Phase 3.
    """
    if PHASE3 not in rows:
        return []
    found = [_best(rows, limit), _apart(rows)]
    cost = costs.get(PHASE3)
    if cost is not None:
        name = f"an attached memory costs at most {OVERHEAD:.0%} per generated token"
        found.append(Target(name, f"{cost:+.1%}", cost <= OVERHEAD))
    return found


def _best(rows: Mapping[str, Mapping[str, float]], limit: float) -> Target:
    """Of all that keep the limit in the mean over seeds, who gains most."""
    passing = {method: row[ledger.ON_GAIN] for method, row in rows.items() if row[ledger.P99_STRESS] <= limit}
    name = f"Phase 3 has the best ON of all that pass OFF p99 ≤ {limit:g}"
    if PHASE3 not in passing:
        return Target(name, f"Phase 3 does not pass: {rows[PHASE3][ledger.P99_STRESS]:.3g}", False)
    order = sorted(passing, key=lambda method: passing[method], reverse=True)
    told = ", ".join(f"{METHODS[method]} {passing[method]:+.3f}" for method in order[:3])
    return Target(name, f"{len(passing)} pass: {told}", passing[PHASE3] >= max(passing.values()))


def _apart(rows: Mapping[str, Mapping[str, float]]) -> Target:
    """The smallest p99 of a rival with equal ON, over Phase 3's. Full context is no memory of equal bytes."""
    own = rows[PHASE3]
    wanted = own[ledger.ON_GAIN] - EQUAL_ON
    rivals = {
        method: row[ledger.P99_STRESS]
        for method, row in rows.items()
        if method != PHASE3 and method not in NO_MEMORY and row[ledger.ON_GAIN] >= wanted
    }
    name = f"no peer within {TIMES:g} × of its OFF p99 at equal ON"
    if not rivals:
        return Target(name, "no peer has equal ON", True)
    told = ", ".join(
        f"{METHODS[method]} {p99 / own[ledger.P99_STRESS]:,.0f} ×"
        for method, p99 in sorted(rivals.items(), key=lambda item: item[1])
    )
    return Target(name, told, min(rivals.values()) >= TIMES * own[ledger.P99_STRESS])
