"""What the per-prompt tables of a run say, and whether the logged scalars agree with them.

The tables are the evidence. A scalar is judged only when its table gives the same number, and then it is the table's
number that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from cedkv import ledger
from cedkv.core import stats
from cedkv.core.verdict import Measured
from cedkv.tracking.record import OnRow, RunRecord, StressRow

AGREEMENT_RELATIVE = 1e-6
AGREEMENT_ABSOLUTE = 1e-9
"""How far a scalar may lie from its table. Both come from the same float64 values and JSON keeps those exactly, so only
the order of a sum may differ (1e-13); the rest leaves room for a store that keeps float32 (6e-8)."""

SCALAR_ONLY = (ledger.NULL_INJECTION_MAX_KL, ledger.TEACHER_CACHE_MAX_KL)
"""Metrics that no per-prompt table determines."""

Row = TypeVar("Row", OnRow, StressRow)

_LOWEST_KL = -1e-6  # a KL divergence is non-negative: further below zero than rounding is not a measurement


def on_metrics(rows: Sequence[OnRow]) -> dict[str, float]:
    """Every scalar that a non-empty ON table determines, by its name in the log. NaN where a row is not finite."""
    n = len(rows)
    base = sum(row.base_correct for row in rows)
    student = sum(row.student_correct for row in rows)
    teacher = sum(row.teacher_correct for row in rows)
    return {
        ledger.ON_ACC_BASE: base / n,
        ledger.ON_ACC_STUDENT: student / n,
        ledger.ON_ACC_TEACHER: teacher / n,
        ledger.ON_GAIN: (student - base)
        / n,  # counts first: 12 of 100 less 10 of 100 is 0.02, not 0.01999...
        ledger.ON_GAIN_RECOVERED: _ratio(student - base, teacher - base),
        ledger.ON_LOGP_GAIN: _mean(row.student_logp - row.base_logp for row in rows),
        ledger.DELTA_ON_MEAN: _mean_kl(row.kl_student_base for row in rows),
        ledger.REL_KL_TO_TEACHER: _ratio(
            _mean_kl(row.kl_teacher_student for row in rows), _mean_kl(row.kl_teacher_base for row in rows)
        ),
    }


def stress_metrics(rows: Sequence[StressRow]) -> dict[str, float]:
    """Every scalar that a non-empty stress table determines, in nats, by its name in the log.

    NaN where a row is not finite; ``inf`` for an upper bound that so few prompts cannot give.
    """
    stress = [row.stress_delta for row in rows]
    return {
        ledger.P99_STRESS: _of_kl(stats.order_statistic_quantile, stress),
        ledger.P99_UPPER: _of_kl(stats.upper_bound, stress),
        ledger.P99_TYPICAL: _of_kl(stats.order_statistic_quantile, [row.typical for row in rows]),
        ledger.MEAN_STRESS: _mean_kl(stress),
        ledger.MAX_STRESS: _of_kl(max, stress),
    }


def measure(record: RunRecord) -> dict[str, Measured]:
    """Every metric that a gate judges or reports, recomputed from its table and held against the logged scalar."""
    return {
        **_held_against(record.metrics, record.on_table, ledger.TABLE_ON, on_metrics, _ON_NAMES),
        **_held_against(
            record.metrics, record.stress_table, ledger.TABLE_STRESS, stress_metrics, _STRESS_NAMES
        ),
        **{name: _scalar(name, record.metrics) for name in SCALAR_ONLY},
    }


_ON_NAMES = (
    ledger.ON_ACC_BASE,
    ledger.ON_ACC_STUDENT,
    ledger.ON_ACC_TEACHER,
    ledger.ON_GAIN,
    ledger.ON_GAIN_RECOVERED,
    ledger.ON_LOGP_GAIN,
    ledger.DELTA_ON_MEAN,
    ledger.REL_KL_TO_TEACHER,
)
_STRESS_NAMES = (
    ledger.P99_STRESS,
    ledger.P99_UPPER,
    ledger.P99_TYPICAL,
    ledger.MEAN_STRESS,
    ledger.MAX_STRESS,
)
OF_MEMORY: Final = (*_ON_NAMES, *_STRESS_NAMES, *SCALAR_ONLY)
"""Metrics of the memory that a run ended with; all others are of its training, whose last step may be another memory's."""


def _held_against(
    logged: Mapping[str, float],
    rows: Sequence[Row] | None,
    table: str,
    recompute: Callable[[Sequence[Row]], dict[str, float]],
    names: Sequence[str],
) -> dict[str, Measured]:
    if not rows:
        gone = f"{table} is missing, unreadable or empty"
        return {name: Measured(name, logged.get(name), None, gone) for name in names}
    values = recompute(rows)
    return {name: _judge_agreement(name, values[name], logged, table, len(rows)) for name in names}


def _judge_agreement(name: str, value: float, logged: Mapping[str, float], table: str, n: int) -> Measured:
    if math.isnan(value):
        return Measured(
            name, value, n, f"{table} does not give a finite value: a row is null, or nothing divides it"
        )
    if math.isinf(value):
        return Measured(name, value, n, f"{n} prompts are too few for a 95 % bound on p99 (299 needed)")
    gap = _gap(name, logged)
    if not gap and not math.isclose(
        logged[name], value, rel_tol=AGREEMENT_RELATIVE, abs_tol=AGREEMENT_ABSOLUTE
    ):
        gap = f"logged scalar {logged[name]:.9g} disagrees with {table}, which gives {value:.9g}"
    return Measured(name, value, n, gap)


def _scalar(name: str, logged: Mapping[str, float]) -> Measured:
    gap = _gap(name, logged)
    if not gap and logged[name] < _LOWEST_KL:
        gap = f"the logged value {logged[name]:.6g} is negative, which no divergence is"
    return Measured(name, logged.get(name), None, gap)


def _gap(name: str, logged: Mapping[str, float]) -> str:
    if name not in logged:
        return f"metric {name} is not logged"
    return "" if math.isfinite(logged[name]) else f"the logged value is not finite ({logged[name]})"


def _of_kl(statistic: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    possible = all(math.isfinite(value) and value >= _LOWEST_KL for value in values)
    return statistic(values) if possible else math.nan


def _mean_kl(values: Iterable[float]) -> float:
    return _of_kl(_mean, list(values))


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return math.fsum(kept) / len(kept) if all(map(math.isfinite, kept)) else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0 else math.nan
