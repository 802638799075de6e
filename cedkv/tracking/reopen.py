"""Opening a run again: it goes on as the same run, and what it logs a second time is left out.

Between its last checkpoint and its end a run has logged steps that are computed again, to the same bits. A store would keep
them beside the first ones, with another time, and cannot forget any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowClient, Run, RunTag
from cedkv.tracking.names import NONFINITE_PREFIX


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run that goes on, and the steps that were done when it was saved.

    `same`: whether all of it was computed as it will be now. Where settings or code changed on the way, what was logged after
    the checkpoint is not what is computed now, even where two numbers are equal.
    """

    run_id: str
    step: int
    same: bool = True


@dataclass(slots=True)
class Before:
    """What was logged before: how often each value at each (metric, step), and how often one up to the checkpoint was not finite."""

    points: dict[tuple[str, int], Counter[str]] = field(default_factory=dict)
    nonfinite: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, step: int, value: float) -> None:
        """A point that the store has."""
        self.points.setdefault((name, step), Counter())[_shown(name, value)] += 1

    def is_new(self, name: str, step: int, value: float) -> bool:
        """Whether a point has to be logged. One that the store has counts as met; another value makes all that follow there new."""
        known = self.points.get((name, step))
        if not known:
            return True
        shown = _shown(name, value)
        if known[shown] > 0:
            known[shown] -= 1
            return False
        known.clear()
        return True


def _shown(name: str, value: float) -> str:
    """The value, exactly; of how long something took it says nothing."""
    return "" if name.startswith((ledger.PERF_PREFIX, ledger.SYSTEM_PREFIX)) else repr(value)


def check_open_to_resume(run_id: str, status: str, lifecycle: str) -> None:
    """Raise ``UserError`` for a run that is deleted or finished."""
    if lifecycle != "active":
        raise UserError(
            f"run {run_id} is deleted; restore it (`mlflow runs restore --run-id {run_id}`), then resume it"
        )
    if status == "FINISHED":
        raise UserError(f"run {run_id} is finished; there is nothing to resume: start a new run")


def reopen(client: MlflowClient, resumed: Resumed, tags: Mapping[str, str]) -> tuple[Run, Before]:
    """Mark a run as running again, with `tags` and without the error it ended with; what is in its history.

    Raises:
        UserError: it is deleted or finished.
    """
    run = client.get_run(resumed.run_id)
    check_open_to_resume(resumed.run_id, run.info.status, run.info.lifecycle_stage)
    before = Before()
    for name in run.data.metrics:
        history = client.get_metric_history(resumed.run_id, name)
        for point in history if resumed.same else ():
            before.add(name, point.step, point.value)
        if name.startswith(NONFINITE_PREFIX):
            counts = [int(point.value) for point in history if point.step < resumed.step]
            before.nonfinite[name.removeprefix(NONFINITE_PREFIX)] = max(counts, default=0)
    client.log_batch(resumed.run_id, tags=[RunTag(*item) for item in tags.items()])
    if ledger.TAG_ERROR in run.data.tags:
        client.delete_tag(resumed.run_id, ledger.TAG_ERROR)
    client.update_run(resumed.run_id, status="RUNNING")
    return run, before
