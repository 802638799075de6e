"""Reproduction: do runs of one configuration end with the same gate results, and how far apart are their numbers?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cedkv import ledger
from cedkv.core.verdict import GateReport, Reproduced, Reproduction, Status
from cedkv.release.evidence import number
from cedkv.tracking.record import RunRecord

_IDENTITY = (
    ledger.TAG_PHASE,
    ledger.TAG_CONFIG_HASH,
    ledger.TAG_MODEL,
    ledger.TAG_HASH_DOCUMENTS,
    ledger.TAG_HASH_ON_TRAIN,
    ledger.TAG_HASH_ON_EVAL,
    ledger.TAG_HASH_OFF_TRAIN,
    ledger.TAG_HASH_STRESS,
)
"""What two runs have in common when one repeats the other: everything but the moment and the machine."""

_NOT_COMPARED = (ledger.PERF_PREFIX, "gate/", "gate_margin/")
"""Metrics that say how long a run took, or that a verdict wrote back."""


def find_repeats(record: RunRecord, runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Finished, not deleted runs of the same configuration, model and data, by start time; never the run itself."""
    same = [run for run in runs if run.run_id != record.run_id and _is_repeat(run, record)]
    return sorted(same, key=lambda run: (run.start_time_ms, run.run_id))


def judge_reproduction(record: RunRecord, mine: GateReport, repeats: Sequence[GateReport]) -> Reproduction:
    """Whether enough runs agree: ``phase3.eval.repro_runs`` of them, this one included, and none that does not.

    A repeat whose own verdict is inconclusive proves nothing and does not count.
    """
    judged = [repeat for repeat in repeats if repeat.status is not Status.INCONCLUSIVE]
    if mine.status is Status.INCONCLUSIVE:
        return Reproduction(Reproduced.NOT_TRIED, (), "this run's own verdict is inconclusive")
    others = [repeat for repeat in judged if _results(repeat) != _results(mine)]
    if others:
        gate_a, gate_b = _results(others[0])
        reason = f"run {others[0].run_id} ended with Gate A {gate_a}, Gate B {gate_b}"
        return Reproduction(Reproduced.NO, tuple(repeat.run_id for repeat in others), reason)
    needed = number(record.config, "phase3.eval.repro_runs") or 2
    agreeing = tuple(repeat.run_id for repeat in judged)
    if len(agreeing) + 1 >= needed:
        return Reproduction(Reproduced.YES, agreeing)
    reason = f"{len(agreeing) + 1} of {needed:g} runs of this configuration" if agreeing else ""
    return Reproduction(Reproduced.NOT_TRIED, agreeing, reason)


@dataclass(frozen=True, slots=True)
class Difference:
    """One number, or one column of a table or trace, that two runs do not agree on.

    ``differ`` of ``of`` values differ; ``largest`` is the largest distance, None where one of the two is missing, not
    finite or no number.
    """

    name: str
    differ: int
    of: int
    largest: float | None


def differences(
    first: RunRecord,
    second: RunRecord,
    traces: tuple[Mapping[str, Sequence[Any]], Mapping[str, Sequence[Any]]] = ({}, {}),
) -> list[Difference]:
    """Every logged number of two runs that is not the same bit for bit: metrics, per-prompt tables, traces."""
    found = [
        _compared(name, [first.metrics.get(name)], [second.metrics.get(name)])
        for name in sorted(first.metrics.keys() | second.metrics.keys())
        if not name.startswith(_NOT_COMPARED)
    ]
    for table, ours, theirs in (
        (ledger.TABLE_ON, first.on_table, second.on_table),
        (ledger.TABLE_STRESS, first.stress_table, second.stress_table),
    ):
        found += _columns(table, [asdict(row) for row in ours or ()], [asdict(row) for row in theirs or ()])
    for name in sorted(traces[0].keys() | traces[1].keys()):
        found += _columns(name, traces[0].get(name, ()), traces[1].get(name, ()))
    return [difference for difference in found if difference.differ]


def _columns(
    table: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    """Rows side by side; a row that only one table has differs in every column."""
    length = max(len(first), len(second))
    ours, theirs = ([*rows, *[{}] * (length - len(rows))] for rows in (first, second))
    names = sorted({name for row in (*first[:1], *second[:1]) for name in row})
    return [
        _compared(f"{table} {name}", [row.get(name) for row in ours], [row.get(name) for row in theirs])
        for name in names
    ]


def _compared(name: str, first: Sequence[Any], second: Sequence[Any]) -> Difference:
    apart = [(a, b) for a, b in zip(first, second, strict=True) if not _same(a, b)]
    distances = [abs(a - b) for a, b in apart if _finite(a) and _finite(b)]
    largest = max(distances, default=None) if len(distances) == len(apart) else None
    return Difference(name, len(apart), len(first), largest)


def _same(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or a == b


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_repeat(run: RunRecord, record: RunRecord) -> bool:
    same = all(run.tags.get(tag) and run.tags.get(tag) == record.tags.get(tag) for tag in _IDENTITY)
    return same and run.status == "FINISHED" and run.lifecycle == "active"


def _results(report: GateReport) -> tuple[Status, Status]:
    return report.gate_a, report.gate_b
