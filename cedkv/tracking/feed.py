"""Metric histories of many runs, read as they grow: a refresh reads what was logged since the last one, no more."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from typing import Final

from cedkv.core.errors import UserError
from cedkv.tracking import sqlite
from cedkv.tracking.fast_read import open_database
from cedkv.tracking.names import check_run_id
from cedkv.tracking.reader import find_run, metric_history
from cedkv.tracking.record import Series
from cedkv.tracking.store import check_uri, database_path, is_sqlite

_ALIVE: Final = "RUNNING"
_NEWEST: Final = "SELECT coalesce(max(rowid), 0) FROM metrics"
_WHOLE: Final = (
    "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? AND rowid <= ? ORDER BY rowid"
)
_SINCE: Final = (
    "SELECT run_uuid, key, step, value, is_nan FROM metrics WHERE rowid > ? AND rowid <= ? ORDER BY rowid"
)


Histories = dict[str, dict[str, Series]]
"""Series by run id and metric."""


class Feed:
    """The histories of runs of one store. Not safe for several threads: who shares one, locks.

    A SQLite store is read by row number: rows are only ever added. Other stores are asked for whole runs, those that have
    ended only once.
    """

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        self._uri, self._seen, self._done = uri, 0, set[str]()
        self.histories: Histories = {}

    def refresh(self, run_ids: Iterable[str]) -> Histories:
        """Bring the histories of `run_ids` up to date, and return all that are held.

        Raises:
            UserError: an id that is malformed or not in the store, or no store.
        """
        wanted = [check_run_id(run_id) for run_id in run_ids]
        if not (is_sqlite(self._uri) and self._from_file(wanted)):
            self._from_api(wanted)
        return self.histories

    def _from_file(self, wanted: list[str]) -> bool:
        """Whether the store's file could be read."""
        path = database_path(self._uri)
        known = open_database(path)
        if known is None:
            return False
        known.close()
        db = sqlite.connect_to_read(path)
        try:
            db.execute("BEGIN")
            newest: int = db.execute(_NEWEST).fetchone()[0]
            if newest < self._seen:  # rows were erased: what is held may be gone
                self.histories.clear()
            for run_id, key, step, value, is_nan in (
                db.execute(_SINCE, (self._seen, newest)) if self.histories else ()
            ):
                if run_id in self.histories:
                    _add(self.histories[run_id], key, step, value, is_nan)
            for run_id in wanted:
                if run_id not in self.histories:
                    series: dict[str, Series] = {}
                    for key, step, value, is_nan in db.execute(_WHOLE, (run_id, newest)):
                        _add(series, key, step, value, is_nan)
                    self.histories[run_id] = series
            self._seen = newest
        except sqlite3.Error as error:
            raise UserError(
                f"{path} cannot be read ({error}); try again, or copy the store and read the copy"
            ) from error
        finally:
            db.close()
        return True

    def _from_api(self, wanted: list[str]) -> None:
        for run_id in wanted:
            if run_id in self._done:
                continue
            record, _ = find_run(run_id, self._uri)
            points = metric_history(run_id, record.metrics, self._uri)
            self.histories[run_id] = {
                name: Series([point.step for point in found], [point.value for point in found])
                for name, found in points.items()
            }
            if record.status != _ALIVE:
                self._done.add(run_id)


def _add(series: dict[str, Series], key: str, step: int, value: float, is_nan: bool) -> None:
    held = series.setdefault(key, Series())
    held.steps.append(step)
    held.values.append(math.nan if is_nan else value)
