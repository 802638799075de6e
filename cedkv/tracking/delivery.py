"""How the records of a journal come into the store, and whether it helps to try again where one did not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from cedkv import ledger
from cedkv.tracking.backend import Metric, MlflowClient, MlflowException, RunTag, TrackingError
from cedkv.tracking.journal import Record

METRICS_PER_REQUEST: Final = 1000
_HOPELESS: Final = {
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "BAD_REQUEST",
}
_BROKEN: Final = ("malformed", "not a database", "no such table")
"""What SQLite says of a file that will not mend itself."""


class Delivery:
    """Writes records of one run; what is written twice is there once.

    Args:
        folder: of the journal, where the files of records lie.
        check: called before each request; raises where the store is not the one it was.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: Path, check: Callable[[], object] = lambda: None
    ) -> None:
        self._client, self._run_id, self._folder, self._check = client, run_id, folder, check

    def __call__(self, records: Sequence[Record]) -> None:
        """Write what `batch_of` gave."""
        self._check()
        first = records[0]
        match first["kind"]:
            case "metrics":
                metrics = [Metric(*point) for record in records for point in record["points"]]
                self._client.log_batch(self._run_id, metrics=metrics)
            case "tags":
                self._client.log_batch(self._run_id, tags=[RunTag(*item) for item in first["tags"].items()])
            case "file":
                self._upload(first)
            case "end":
                if first["reason"]:
                    self._client.set_tag(self._run_id, ledger.TAG_ERROR, first["reason"])
                self._client.set_terminated(self._run_id, first["status"], first["time_ms"])

    def _upload(self, record: Record) -> None:
        place = PurePosixPath(record["path"])
        into = None if place.parent.name == "" else str(place.parent)
        if "file" in record:
            self._client.log_artifact(self._run_id, str(self._folder / record["file"]), into)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, place.name)
            file.write_bytes(record["content"])
            self._client.log_artifact(self._run_id, str(file), into)


def points_in(record: Record) -> int:
    """How many records of the store it stands for."""
    return len(record["points"]) if record.get("kind") == "metrics" else 1


def batch_of(records: Sequence[Record]) -> list[Record]:
    """Those in front that go in one request."""
    found: list[Record] = []
    size = 0
    for record in records:
        size += points_in(record)
        if found and (record.get("kind") != "metrics" or size > METRICS_PER_REQUEST):
            break
        found.append(record)
        if record.get("kind") != "metrics":
            break
    return found


def may_pass(error: BaseException) -> bool:
    """Whether the same request may go through later."""
    if isinstance(error, MlflowException):
        text = str(error)
        return error.error_code not in _HOPELESS and not any(mark in text for mark in _BROKEN)
    if isinstance(error, TrackingError | FileNotFoundError | NotADirectoryError):
        return False
    return isinstance(error, OSError)  # the errors of `requests` are among them
