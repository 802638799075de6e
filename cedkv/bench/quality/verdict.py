"""The targets of the benchmark, from its numbers: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Numbers:
    """A method over all seeds: its mean ON gain, the mean of its OFF p99, and the largest."""

    gain: float
    p99: float
    worst_p99: float


def targets(rows: Mapping[str, Numbers], cost: float | None, limit: float) -> list[Target]:
    """Judge the best ON of all that keep the limit, the p99 at equal ON, and what Phase 3 costs per token.

    Nothing is judged without Phase 3.
    """
    if PHASE3 not in rows:
        return []
    found = [_best(rows, limit), _apart(rows)]
    if cost is not None:
        name = f"an attached memory costs at most {OVERHEAD:.0%} per generated token"
        found.append(Target(name, f"{cost:+.1%}", cost <= OVERHEAD))
    return found


def _best(rows: Mapping[str, Numbers], limit: float) -> Target:
    """Of all that keep the limit on every seed, who gains most."""
    passing = {method: row.gain for method, row in rows.items() if row.worst_p99 <= limit}
    name = f"Phase 3 has the best ON of all that pass OFF p99 ≤ {limit:g} on every seed"
    if PHASE3 not in passing:
        return Target(name, f"Phase 3 does not pass: {rows[PHASE3].worst_p99:.3g}", False)
    order = sorted(passing, key=lambda method: passing[method], reverse=True)
    told = ", ".join(f"{METHODS[method]} {passing[method]:+.3f}" for method in order[:3])
    return Target(name, f"{len(passing)} pass: {told}", passing[PHASE3] >= max(passing.values()))


def _apart(rows: Mapping[str, Numbers]) -> Target:
    """The smallest p99 of a rival with equal ON, over Phase 3's. Full context is no memory of equal bytes."""
    own = rows[PHASE3]
    rivals = {
        method: row.p99
        for method, row in rows.items()
        if method != PHASE3 and method not in NO_MEMORY and row.gain >= own.gain - EQUAL_ON
    }
    name = f"no peer within {TIMES:g} × of its OFF p99 at equal ON"
    if not rivals:
        return Target(name, "no peer has equal ON", True)
    told = ", ".join(
        f"{METHODS[method]} {p99 / own.p99:,.3g} ×"
        for method, p99 in sorted(rivals.items(), key=lambda item: item[1])
    )
    return Target(name, told, min(rivals.values()) >= TIMES * own.p99)
