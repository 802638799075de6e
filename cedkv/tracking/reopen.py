"""Opening a run again: it goes on as the same run, and what it logs a second time is left out.

Between its last checkpoint and its end a run has logged steps that are computed again, to the same bits. A store would keep
them beside the first ones, with another time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowClient, Run

NONFINITE_PREFIX: Final = "nonfinite/"
"""Prefix of the metric that counts how often a metric or an artifact held NaN or an infinity."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run that goes on, and the steps that were done when it was saved."""

    run_id: str
    step: int


@dataclass(slots=True)
class Before:
    """How often each metric was logged at each step before, and how often it was not finite up to the checkpoint."""

    points: Counter[tuple[str, int]] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)

    def is_new(self, name: str, step: int) -> bool:
        """Whether a point is not in the store yet; one that is counts as met."""
        if self.points[name, step] <= 0:
            return True
        self.points[name, step] -= 1
        return False


def reopen(client: MlflowClient, resumed: Resumed) -> tuple[Run, Before]:
    """Mark a run as running again, without the error it ended with; what is in its history.

    Raises:
        UserError: it is deleted or finished.
    """
    run = client.get_run(resumed.run_id)
    if run.info.lifecycle_stage != "active":
        raise UserError(
            f"run {resumed.run_id} is deleted; restore it (`mlflow runs restore --run-id {resumed.run_id}`), then resume it"
        )
    if run.info.status == "FINISHED":
        raise UserError(f"run {resumed.run_id} is finished; there is nothing to resume: start a new run")
    before = Before()
    for name in run.data.metrics:
        history = client.get_metric_history(resumed.run_id, name)
        before.points.update((name, point.step) for point in history)
        if name.startswith(NONFINITE_PREFIX):
            counts = [int(point.value) for point in history if point.step < resumed.step]
            before.nonfinite[name.removeprefix(NONFINITE_PREFIX)] = max(counts, default=0)
    client.update_run(resumed.run_id, status="RUNNING")
    if ledger.TAG_ERROR in run.data.tags:
        client.delete_tag(resumed.run_id, ledger.TAG_ERROR)
    return run, before
