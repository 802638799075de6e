"""Append-only ledgers of an experiment: which runs were exploratory, and who opened the sealed set.

Every entry is a tag of the experiment under a name of its own, so that two writers never overwrite one another and
writing an entry twice changes nothing. Tags of an experiment outlive its runs: `mlflow gc` erases a run, not its entry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cedkv import ledger
from cedkv.tracking.names import check_run_id
from cedkv.tracking.reader import read_experiment
from cedkv.tracking.store import open_client, shown


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The experiment's name, and its ledgers: run id to start time (ms), and attempt id to what it holds."""

    experiment: str
    explored: dict[str, int]
    certified: dict[str, dict[str, Any]]


def read_ledgers(experiment_id: str, uri: str) -> Ledgers:
    """Both ledgers of an experiment. An entry that cannot be read still counts: as one that came first."""
    name, tags = read_experiment(experiment_id, uri)
    explored = {key: _milliseconds(value) for key, value in _under(ledger.EXPLORED_PREFIX, tags)}
    certified = {key: _mapping(value) for key, value in _under(ledger.CERTIFIED_PREFIX, tags)}
    return Ledgers(name, explored, certified)


def enter_explored(experiment_id: str, run_id: str, start_ms: int, uri: str) -> None:
    """Remember that ``run_id`` is exploratory. The same entry again changes nothing."""
    _enter(experiment_id, ledger.EXPLORED_PREFIX + check_run_id(run_id), str(start_ms), uri)


def enter_certified(experiment_id: str, attempt_id: str, entry: dict[str, Any], uri: str) -> None:
    """Remember an opening of the sealed set, before it is opened."""
    text = json.dumps(entry, sort_keys=True)
    _enter(experiment_id, ledger.CERTIFIED_PREFIX + check_run_id(attempt_id), text, uri)


def _enter(experiment_id: str, name: str, value: str, uri: str) -> None:
    from cedkv.tracking.backend import store_errors  # imports mlflow, which takes seconds

    client = open_client(uri)
    with store_errors(f"writing {name} of experiment {experiment_id} in {shown(uri)}"):
        client.set_experiment_tag(experiment_id, name, value)


def _under(prefix: str, tags: dict[str, str]) -> list[tuple[str, str]]:
    return [(name.removeprefix(prefix), value) for name, value in tags.items() if name.startswith(prefix)]


def _milliseconds(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
