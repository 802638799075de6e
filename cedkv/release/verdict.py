"""Everything that is said of one run: its gates, and beside them milestone, reproduction and certification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cedkv.core.verdict import GateReport, MilestoneReport, Verdict
from cedkv.release.certify import Attempt, judge_certificate
from cedkv.release.gates import judge
from cedkv.release.milestone import find_baseline, is_explored, judge_milestone
from cedkv.release.reproduce import find_repeats, judge_reproduction
from cedkv.tracking.record import RunRecord


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a verdict on one run reads of the experiment around it.

    Args:
        experiment: its name.
        runs: every run of the experiment, failed and deleted ones too; a listing without tables is enough.
        explored: the ledger of exploratory runs, run id to start time (ms).
        attempts: the ledger of certification attempts.
        read: fetches a run of the experiment with its tables.
    """

    experiment: str
    runs: Sequence[RunRecord]
    explored: Mapping[str, int]
    attempts: Sequence[Attempt]
    read: Callable[[str], RunRecord]
    _judged: dict[str, GateReport] = field(default_factory=dict)

    def gates(self, run_id: str, record: RunRecord | None = None) -> GateReport:
        """The gate report of a run, judged once; ``record`` where it has been read already."""
        if run_id not in self._judged:
            self._judged[run_id] = judge(record or self.read(run_id))
        return self._judged[run_id]


def verdict_on(record: RunRecord, around: Surroundings) -> Verdict:
    """The verdict on ``record``, a run with its tables."""
    gates = around.gates(record.run_id, record)
    repeats = [around.gates(run.run_id) for run in find_repeats(record, around.runs)]
    return Verdict(
        gates=gates,
        milestone=_milestone(record, around),
        reproduction=judge_reproduction(record, gates, repeats),
        certification=judge_certificate(record, around.attempts),
    )


def _milestone(record: RunRecord, around: Surroundings) -> MilestoneReport | None:
    """None for a run that was never flagged as exploratory."""
    if not is_explored(record, around.explored):
        return None
    found = find_baseline(record, around.runs)
    baseline = None if found is None else around.read(found.run_id)
    return judge_milestone(record, around.runs, baseline, around.explored)
