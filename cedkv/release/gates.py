"""Gate A (a valid injection that helps) and Gate B (harmless when off), judged from one logged run.

Every limit comes from the run's own resolved configuration; limits looser than the design's are named in the notes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cedkv import ledger
from cedkv.core import stats
from cedkv.core.verdict import (
    Check,
    GateReport,
    Group,
    Measured,
    Operator,
    Status,
    WorstPrompt,
    combine,
    holds,
)
from cedkv.release.evidence import (
    STRESS_PATH,
    lookup,
    number,
    on_evidence,
    run_evidence,
    stress_evidence,
    unmet,
)
from cedkv.release.measure import measure
from cedkv.tracking.record import RunRecord, StressRow

THRESHOLDS = "phase3.thresholds"
CERTIFIED_PATH = f"{THRESHOLDS}.certified"
P99_MAX = "off_delta_p99_max"
WORST_SHARE = 0.01
"""Share of the stress prompts that a verdict shows."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the design: metric, operator, key under ``phase3.thresholds`` (None: fixed), and its default."""

    metric: str
    operator: Operator
    key: str | None
    default: float


GATE_A = (
    Limit(ledger.NULL_INJECTION_MAX_KL, "=", None, 0.0),
    Limit(ledger.TEACHER_CACHE_MAX_KL, "<=", "teacher_cache_kl_max", 1e-4),
    Limit(ledger.ON_ACC_TEACHER, ">=", "teacher_min_on_acc", 0.2),
    Limit(ledger.DELTA_ON_MEAN, ">=", "delta_on_min", 0.01),
    Limit(ledger.ON_GAIN, ">=", "on_gain_min", 0.02),
    Limit(ledger.REL_KL_TO_TEACHER, "<=", "rel_kl_to_teacher_max", 1.0),
)
GATE_B = Limit(ledger.P99_STRESS, "<=", P99_MAX, 0.05)
GATE_B_CERTIFIED = Limit(ledger.P99_UPPER, "<=", P99_MAX, 0.05)

REPORTED = (
    ledger.ON_ACC_BASE,
    ledger.ON_ACC_STUDENT,
    ledger.ON_GAIN_RECOVERED,
    ledger.ON_LOGP_GAIN,
    ledger.P99_UPPER,
    ledger.P99_TYPICAL,
    ledger.MEAN_STRESS,
    ledger.MAX_STRESS,
)
"""Shown beside the checks, never judged (but for the bound, when the run is to be certified)."""


def judge(record: RunRecord) -> GateReport:
    """Judge a run of phase 2 or 3 from its log alone."""
    values = measure(record)
    run = run_evidence(record)
    on, stress = on_evidence(record), stress_evidence(record)
    gate_a = (
        *on,
        *(_check(record, "A", limit, values, unmet((*run, *_beneath(limit, on)))) for limit in GATE_A),
    )
    judged_b = (GATE_B, GATE_B_CERTIFIED) if _certified(record) else (GATE_B,)
    gate_b = (*stress, *(_check(record, "B", limit, values, unmet((*run, *stress))) for limit in judged_b))
    gate_b = (*gate_b, *_unknown_certification(record))
    exceedances, allowed = _tail(record)
    return GateReport(
        run_id=record.run_id,
        run_name=record.name,
        experiment_id=record.experiment_id,
        phase=record.tags.get(ledger.TAG_PHASE),
        gate_a=combine((*run, *gate_a)),
        gate_b=combine((*run, *gate_b)),
        status=combine((*run, *gate_a, *gate_b)),
        certified=_certified(record),
        checks=(*run, *gate_a, *gate_b),
        reported=tuple(values[name] for name in REPORTED),
        exceedances=exceedances,
        allowed=allowed,
        worst=worst_prompts(record.stress_table or ()),
        notes=_notes(record),
    )


def worst_prompts(rows: Sequence[StressRow]) -> tuple[WorstPrompt, ...]:
    """The worst 1 % of the stress prompts, rounded up, hardest first.

    Rows that are not finite come first: nothing is known of them.
    """
    hardest = sorted(rows, key=_hardness)[: math.ceil(WORST_SHARE * len(rows))]
    return tuple(
        WorstPrompt(
            row.id, row.prompt, row.family, row.state, row.stress_delta, row.base_top, row.student_top
        )
        for row in hardest
    )


def _hardness(row: StressRow) -> tuple[bool, float, str]:
    known = math.isfinite(row.stress_delta)
    return known, -row.stress_delta if known else 0.0, row.id


def limit_of(record: RunRecord, limit: Limit) -> float | None:
    """The number a run is held to, from its own configuration; None where that does not state a finite one."""
    return limit.default if limit.key is None else number(record.config, f"{THRESHOLDS}.{limit.key}")


def _check(record: RunRecord, group: Group, limit: Limit, values: dict[str, Measured], blocked: str) -> Check:
    found = values[limit.metric]
    bound = limit_of(record, limit)
    reason = found.problem or blocked
    if bound is None:
        reason = reason or f"the run's configuration states no finite {THRESHOLDS}.{limit.key}"
    if reason or bound is None or found.value is None:
        return Check(
            group, limit.metric, found.value, limit.operator, bound, found.n, Status.INCONCLUSIVE, reason
        )
    if holds(found.value, limit.operator, bound):
        return Check(group, limit.metric, found.value, limit.operator, bound, found.n, Status.PASS)
    reason = f"{found.value:.6g} {limit.operator} {bound:.6g} does not hold"
    return Check(group, limit.metric, found.value, limit.operator, bound, found.n, Status.FAIL, reason)


def _beneath(limit: Limit, on: tuple[Check, ...]) -> tuple[Check, ...]:
    """Only what was measured on the ON prompts rests on the ON evidence."""
    return () if limit.metric in (ledger.NULL_INJECTION_MAX_KL, ledger.TEACHER_CACHE_MAX_KL) else on


def _certified(record: RunRecord) -> bool:
    return lookup(record.config, CERTIFIED_PATH) is True


def _unknown_certification(record: RunRecord) -> tuple[Check, ...]:
    """Without a plain yes or no the judged value is unknown, and that must not read as 'no'."""
    stated = lookup(record.config, CERTIFIED_PATH)
    if isinstance(stated, bool):
        return ()
    reason = f"{CERTIFIED_PATH} is {stated!r}; the run's configuration has to say true or false"
    return (Check("B", "certified", None, "=", "true or false", None, Status.INCONCLUSIVE, reason),)


def _tail(record: RunRecord) -> tuple[int | None, int | None]:
    rows, limit = record.stress_table, limit_of(record, GATE_B)
    if not rows or limit is None or any(math.isnan(row.stress_delta) for row in rows):
        return None, None
    rank = stats.upper_bound_rank(len(rows))
    return stats.exceedances((row.stress_delta for row in rows), limit), None if rank is None else len(
        rows
    ) - rank


def _notes(record: RunRecord) -> tuple[str, ...]:
    """What a reader of the verdict should know and no check says."""
    notes = [f"problem while reading the log: {problem}" for problem in record.problems]
    for limit in (*GATE_A, GATE_B):
        bound = limit_of(record, limit)
        if limit.key is not None and bound is not None and not holds(bound, limit.operator, limit.default):
            notes.append(f"{limit.key} is {bound:g}, looser than the design's {limit.default:g}")
    size, seed = (lookup(record.config, f"{STRESS_PATH}.{key}") for key in ("size", "seed"))
    if (size, seed) != (2048, 3407):
        notes.append(f"stress set of size {size} and seed {seed}; full scale is 2048 and 3407")
    if record.tags.get(ledger.TAG_POLICY_MODE) == "debug":
        notes.append("policy mode debug: not a production run")
    source = record.tags.get(ledger.TAG_SOURCE_LAMBDA)
    if source not in (None, ledger.SOURCE_FIXED):
        notes.append(f"lambda_off followed {source}, not the fixed stress set")
    if record.tags.get(ledger.TAG_GIT_DIRTY) == "true":
        notes.append("the code was changed after its last commit")
    return tuple(notes)
