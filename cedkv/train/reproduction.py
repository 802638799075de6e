"""Run a logged configuration again and say whether, and how exactly, the second run repeats the first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cedkv import ledger
from cedkv.config import forces_prod
from cedkv.core.errors import UserError
from cedkv.core.verdict import GateReport
from cedkv.release.gates import judge
from cedkv.release.reproduce import Difference, differences
from cedkv.tracking.ledgers import read_ledgers
from cedkv.tracking.reader import read_run, read_traces
from cedkv.tracking.record import RunRecord
from cedkv.train.desk import attach_page
from cedkv.train.logged import config_of, corpus_of
from cedkv.train.main import run_training
from cedkv.train.publish import publish


@dataclass(frozen=True, slots=True)
class Repeat:
    """Two runs of one configuration: their gate reports and every number they do not agree on."""

    first: GateReport
    second: GateReport
    differences: tuple[Difference, ...]
    same_code: bool
    same_environment: bool

    @property
    def same_gates(self) -> bool:
        """Whether both gates ended alike: what reproduction means."""
        return (self.first.gate_a, self.first.gate_b) == (self.second.gate_a, self.second.gate_b)


def reproduce(
    run_id: str, uri: str, say: Callable[[str], None] = lambda _: None, *, progress: bool = True
) -> Repeat:
    """Run the resolved configuration of a finished run again, in its experiment, on as many threads.

    The repeat is never an exploratory run, whatever the first one was. Both runs are judged (again) at the end.

    Raises:
        UserError: the run did not finish, or its configuration or data cannot be restored.
    """
    first = read_run(run_id, uri)
    if first.status != "FINISHED":
        raise UserError(
            f"run {run_id} is {first.status}: only a finished run can be reproduced; name another"
        )
    config = config_of(first)
    if forces_prod(os.environ) and config.phase3.runtime.policy_mode == "debug":
        raise UserError(
            f"run {run_id} has policy_mode debug, and CI is set, which allows prod only: reproduce it outside CI"
        )
    corpus_of(first, config)
    experiment = read_ledgers(first.experiment_id, uri).experiment
    tracking = config.tracking.model_copy(update={"uri": uri, "experiment": experiment, "run_name": None})
    threads = re.search(r"threads (\d+)", first.tags.get(ledger.TAG_ENVIRONMENT, ""))
    before = torch.get_num_threads()
    torch.set_num_threads(int(threads[1]) if threads else before)
    try:
        second_id = run_training(
            config.model_copy(update={"tracking": tracking}),
            phase=int(first.tags.get(ledger.TAG_PHASE, ledger.PHASE_TRAINED)),
            progress=progress,
            reproduces=run_id,
        )
    finally:
        torch.set_num_threads(before)
    say(f"run {second_id} repeats run {run_id}")
    publish(run_id, uri)
    attach_page(run_id, uri)
    return compare(first, read_run(second_id, uri), uri)


def compare(first: RunRecord, second: RunRecord, uri: str) -> Repeat:
    """What two logged runs agree on."""

    def same(*tags: str) -> bool:
        return all(first.tags.get(tag) == second.tags.get(tag) != None for tag in tags)  # noqa: E711

    traces = read_traces(first.run_id, uri), read_traces(second.run_id, uri)
    return Repeat(
        first=judge(first),
        second=judge(second),
        differences=tuple(differences(first, second, traces)),
        same_code=same(ledger.TAG_GIT_COMMIT) and second.tags.get(ledger.TAG_GIT_DIRTY) == "false",
        same_environment=same(ledger.TAG_ENVIRONMENT),
    )
