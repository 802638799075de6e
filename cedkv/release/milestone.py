"""The explore milestone: whether an exploratory run makes progress over the Phase 2 baseline.

Judged apart from the gates; it neither reads nor changes their result. The index of a run is counted here, from the
store: a run never states its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType

from cedkv import ledger
from cedkv.core.bootstrap import quantile_reduction_interval
from cedkv.core.verdict import Check, MilestoneReport, MilestoneStatus, Status
from cedkv.release.evidence import lookup, number, on_evidence, run_evidence, stress_evidence, unmet
from cedkv.release.measure import measure
from cedkv.tracking.record import RunRecord

MAX_ON_GAIN_DROP = Fraction(1, 100)
MIN_P99_REDUCTION = Fraction(1, 5)
EXPLORE_PATH = "phase3.milestone.explore"

_NOBODY: Mapping[str, int] = MappingProxyType({})

_SAME_BASELINE = (
    ledger.TAG_MODEL,
    ledger.TAG_HASH_DOCUMENTS,
    ledger.TAG_HASH_ON_EVAL,
    ledger.TAG_HASH_STRESS,
)


def explore_flag(record: RunRecord) -> str:
    """The tag that marks a run of this configuration as exploratory."""
    return str(lookup(record.config, f"{EXPLORE_PATH}.flag") or ledger.TAG_EXPLORE_DEFAULT)


def is_explored(record: RunRecord, explored: Mapping[str, int] = _NOBODY) -> bool:
    """Whether a run counts as exploratory: by its flag, or by the ledger where the flag was taken away later."""
    return _flagged(record, explore_flag(record)) or record.run_id in explored


def judge_milestone(
    record: RunRecord,
    runs: Iterable[RunRecord],
    baseline: RunRecord | None,
    explored: Mapping[str, int] = _NOBODY,
) -> MilestoneReport:
    """Judge the explore milestone of ``record``.

    Args:
        record: the run, with its tables.
        runs: every run of its experiment, failed and deleted ones too; only tags, ids and start times are read.
        baseline: the Phase 2 run that ``find_baseline`` chose, with its tables; None where there is none.
        explored: the experiment's ledger of flagged runs, run id to start time (ms): runs that were erased from the
            store still count.
    """
    reason = _not_applicable(record, explored)
    if reason:
        return _ended(record, MilestoneStatus.NOT_APPLICABLE, reason)
    limit = number(record.config, f"{EXPLORE_PATH}.max_runs")
    if limit is None:
        return _ended(
            record, MilestoneStatus.NOT_JUDGED, f"the configuration states no {EXPLORE_PATH}.max_runs"
        )
    index, max_runs = run_index(record, runs, explore_flag(record), explored), int(limit)
    if index > max_runs:
        reason = f"run {index} of the flagged runs; {max_runs} may be judged"
        return MilestoneReport(record.run_id, MilestoneStatus.BUDGET_SPENT, reason, index, max_runs)
    status, reason, checks = _compare(record, baseline)
    return MilestoneReport(
        record.run_id,
        status,
        reason,
        index,
        max_runs,
        baseline_run_id=None if baseline is None else baseline.run_id,
        checks=checks,
        reduction_interval=_reduction_interval(record, baseline) if baseline and checks else None,
    )


def run_index(
    record: RunRecord,
    runs: Iterable[RunRecord],
    flag: str = ledger.TAG_EXPLORE_DEFAULT,
    explored: Mapping[str, int] = _NOBODY,
) -> int:
    """Index of a run (from 1) among the flagged runs of its experiment, by start time, ties by run id.

    Failed and deleted runs count, and so do erased ones that the ledger ``explored`` remembers. Runs with the default flag count also where the configured flag has another name, so
    that renaming it buys no further runs.
    """
    flagged = {run_id: (start_ms, run_id) for run_id, start_ms in explored.items()} | {
        run.run_id: (run.start_time_ms, run.run_id)
        for run in (*runs, record)
        if run.experiment_id == record.experiment_id and (_flagged(run, flag) or run.run_id == record.run_id)
    }
    return sorted(flagged.values()).index(flagged[record.run_id]) + 1


def find_baseline(record: RunRecord, runs: Iterable[RunRecord]) -> RunRecord | None:
    """The Phase 2 run that ``record`` is compared with: same model, documents, ON set and stress set, by their hashes.

    Of several, the last that started before the run, so that a baseline logged later changes no verdict; where none
    did, the first after it. Only finished, not deleted runs count; a hash that is not logged matches nothing.
    """
    matching = sorted((run for run in runs if _is_baseline(run, record)), key=_start)
    before = [run for run in matching if _start(run) < _start(record)]
    if before:
        return before[-1]
    return matching[0] if matching else None


def _not_applicable(record: RunRecord, explored: Mapping[str, int]) -> str:
    """Why this run is not one that the milestone is for; empty when it is."""
    if not is_explored(record, explored):
        return f"the run is not flagged {explore_flag(record)}"
    if record.tags.get(ledger.TAG_PHASE) != ledger.PHASE_TRAINED:
        return "only runs of phase 3 are judged"
    disabled = lookup(record.config, f"{EXPLORE_PATH}.enabled") is False
    return f"{EXPLORE_PATH}.enabled is false" if disabled else ""


def _compare(record: RunRecord, baseline: RunRecord | None) -> tuple[MilestoneStatus, str, tuple[Check, ...]]:
    if baseline is None:
        return MilestoneStatus.NOT_JUDGED, "no Phase 2 run with the same model and data", ()
    if not _is_baseline(baseline, record):
        return (
            MilestoneStatus.NOT_JUDGED,
            f"run {baseline.run_id} is no Phase 2 run on the same model and data",
            (),
        )
    for role, run in (("this run", record), ("the baseline", baseline)):
        gap = _gap(run)
        if gap:
            return MilestoneStatus.NOT_JUDGED, f"{role}: {gap}", ()
    checks = (_on_kept(record, baseline), _tail_improved(record, baseline))
    passed = all(check.status is Status.PASS for check in checks)
    reason = "; ".join(check.reason for check in checks if check.reason)
    return MilestoneStatus.PASS if passed else MilestoneStatus.FAIL, reason, checks


def _on_kept(record: RunRecord, baseline: RunRecord) -> Check:
    """Exact, in counts: a drop of 1 in 100 is at the limit, not over it by rounding."""
    drop = _gain(baseline) - _gain(record)
    kept = drop <= MAX_ON_GAIN_DROP
    reason = "" if kept else f"on_gain is {float(drop):.4g} below the baseline's"
    n = len(record.on_table or ())
    return Check(
        "milestone", "on_gain_drop", float(drop), "<=", float(MAX_ON_GAIN_DROP), n, _status(kept), reason
    )


def _tail_improved(record: RunRecord, baseline: RunRecord) -> Check:
    """Exact, in decimals. A baseline of zero leaves nothing to improve and cannot be improved on."""
    now, then = (_decimal(measure(run)[ledger.P99_STRESS].value) for run in (record, baseline))
    reduction = 1 - now / then if then > 0 else Fraction(0)
    improved = reduction >= MIN_P99_REDUCTION
    reason = "" if improved else f"p99 {float(now):.4g} nats against {float(then):.4g} in the baseline"
    name, n = "off_delta_p99_stress_reduction", len(record.stress_table or ())
    limit = float(MIN_P99_REDUCTION)
    return Check("milestone", name, float(reduction), ">=", limit, n, _status(improved), reason)


def _reduction_interval(record: RunRecord, baseline: RunRecord) -> tuple[float, float]:
    """Rows of one prompt side by side: the two tables hold the same prompts, which their hashes have proven."""
    then = {row.id: row.stress_delta for row in baseline.stress_table or ()}
    pairs = [(row.stress_delta, then[row.id]) for row in record.stress_table or ()]
    return quantile_reduction_interval([now for now, _ in pairs], [before for _, before in pairs])


def _gap(run: RunRecord) -> str:
    """Why a run's two numbers cannot be used; empty when they can."""
    blocked = unmet((*run_evidence(run), *on_evidence(run), *stress_evidence(run)))
    values = measure(run)
    problems = [values[name].problem for name in (ledger.ON_GAIN, ledger.P99_STRESS)]
    return "; ".join(filter(None, (blocked, *problems)))


def _gain(run: RunRecord) -> Fraction:
    rows = run.on_table or ()
    return Fraction(sum(row.student_correct - row.base_correct for row in rows), len(rows))


def _decimal(value: float | None) -> Fraction:
    assert value is not None  # `_gap` has refused runs without a value
    return Fraction(repr(float(value)))


def _is_baseline(run: RunRecord, record: RunRecord) -> bool:
    same = all(run.tags.get(tag) and run.tags.get(tag) == record.tags.get(tag) for tag in _SAME_BASELINE)
    finished = run.status == "FINISHED" and run.lifecycle == "active"
    return (
        run.run_id != record.run_id
        and run.tags.get(ledger.TAG_PHASE) == ledger.PHASE_BASELINE
        and finished
        and same
    )


def _flagged(run: RunRecord, flag: str) -> bool:
    return any(run.tags.get(name) == ledger.TRUE for name in (flag, ledger.TAG_EXPLORE_DEFAULT))


def _start(run: RunRecord) -> tuple[int, str]:
    return run.start_time_ms, run.run_id


def _status(met: bool) -> Status:
    return Status.PASS if met else Status.FAIL


def _ended(record: RunRecord, status: MilestoneStatus, reason: str) -> MilestoneReport:
    return MilestoneReport(record.run_id, status, reason)
