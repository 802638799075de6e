"""The journals on this machine: where they lie, and sending those whose processes are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowException, brief
from cedkv.tracking.delivery import METRICS_PER_REQUEST, Delivery, batch_of, may_pass, points_in
from cedkv.tracking.journal import DAMAGED, BusyError, Journal, Record
from cedkv.tracking.names import check_run_id, is_run_id
from cedkv.tracking.store import check_store, local_home, open_client, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIED = "its process died without ending it; `cedkv sync` has sent what it had logged"


def spool_of(run_id: str, uri: str) -> Path:
    """The folder of a run's journal."""
    return local_home(uri) / "spool" / check_run_id(run_id)


def replay(journal: Journal, deliver: Callable[[Sequence[Record]], object]) -> tuple[int, int]:
    """Send what the store has not confirmed; how many points, tags and files that was, and how many lines were damaged.

    Raises:
        MlflowException, OSError: the store does not take it; what it has taken is confirmed.
    """
    sent = damaged = 0
    while records := batch_of(journal.take(METRICS_PER_REQUEST)):
        deliver(records)
        journal.confirm(len(records))
        found = sum(record["kind"] == DAMAGED for record in records)
        sent, damaged = sent + sum(map(points_in, records)) - found, damaged + found
    return sent, damaged


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one journal.

    `state`: `sent` (and the journal is gone), `open` in a process that lives, of another store (`elsewhere`), or `refused` by
    this one for good. `records`: how many were sent; `damaged`: how many lines were no records. `status`: of the run now.
    """

    run_id: str
    state: Literal["sent", "open", "elsewhere", "refused"]
    folder: Path
    records: int = 0
    damaged: int = 0
    status: str = ""
    why: str = ""


def sync(uri: str) -> Iterator[Synced]:
    """Send every journal on this machine whose process is gone, one after the other.

    A run whose process died without ending it is marked FAILED; it can still be resumed.

    Raises:
        UserError: the store is away; what is not sent stays.
    """
    check_store(uri)
    root = local_home(uri) / "spool"
    folders = sorted(root.iterdir()) if root.is_dir() else []
    client = open_client(uri) if folders else None
    for folder in folders:
        if client is not None and is_run_id(folder.name):
            yield _synced(folder, uri, client)


def _synced(folder: Path, uri: str, client: MlflowClient) -> Synced:
    run_id = folder.name
    try:
        journal = Journal(folder)
    except BusyError:
        return Synced(run_id, "open", folder)
    with journal:
        if journal.header.get("store", shown(uri)) != shown(uri):
            return Synced(run_id, "elsewhere", folder)
        try:
            client.get_run(run_id)
            sent, damaged = replay(journal, Delivery(client, run_id, folder))
            status = _ended(client, run_id)
        except (MlflowException, OSError) as error:
            if not may_pass(error):
                return Synced(run_id, "refused", folder, why=brief(error))
            raise UserError(
                f"sending what waits of run {run_id}: {brief(error)}; it stays in {str(folder)!r}: try again when the store answers"
            ) from error
        journal.remove()
    return Synced(run_id, "sent", folder, sent, damaged, status)


def _ended(client: MlflowClient, run_id: str) -> str:
    """The status of a run whose process is gone; one that did not end it has failed."""
    status = str(client.get_run(run_id).info.status)
    if status != "RUNNING":
        return status
    client.set_tag(run_id, ledger.TAG_ERROR, DIED)
    client.set_terminated(run_id, "FAILED", time.time_ns() // 1_000_000)
    return "FAILED"
