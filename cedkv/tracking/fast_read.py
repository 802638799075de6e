"""A local store read as the SQLite file it is: a thousand runs take a second, and MLflow need not be imported.

Only a file with exactly the tables that these queries were written for is read here. Whatever is not found or not known
(another schema, workspaces, artifacts on another machine, a run that is not there) is ``None``, for `api_read` to find
or to refuse: so every refusal has one wording, and nothing here can answer differently from MLflow.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cedkv.tracking import sqlite
from cedkv.tracking.artifacts import LocalFiles
from cedkv.tracking.record import MetricPoint, RunRecord, Tag

SCHEMA: Final = "dc11669786a5"
"""The version of MLflow's tables (``alembic_version``) that is read here: the one MLflow 3.17.2 writes."""

_RUN_NAME: Final = "mlflow.runName"

_LISTED: Final = """
    SELECT start_time, run_uuid FROM runs
    WHERE experiment_id = :experiment AND (:view_all OR lifecycle_stage = 'active') AND (:key IS NULL OR EXISTS (
        SELECT 1 FROM tags WHERE tags.run_uuid = runs.run_uuid AND tags.key = :key AND tags.value = :value
    ))
"""
_RUN: Final = """
    SELECT name, end_time, experiment_id, status, lifecycle_stage, start_time, artifact_uri, user_id
    FROM runs WHERE run_uuid = ?
"""
_HISTORY: Final = """
    SELECT step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ? AND key = ?
    ORDER BY step, timestamp, value
"""


def open_database(path: Path) -> Database | None:
    """The store at ``path``, open for reading; ``None`` where only MLflow knows how. ``UserError`` as `sqlite.require`.

    Nothing is locked while it is open, but during a query.
    """
    sqlite.require(path)
    if _uses_workspaces() or written_schema() != SCHEMA:
        return None
    db = sqlite.connect_to_read(path)
    try:
        known = _is_known(db)
    except sqlite3.Error:
        known = False
    if not known:
        db.close()
        return None
    return Database(path, db)


class Database:
    """A local store, open for reading. Every method may raise ``sqlite3.Error``."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path, self._db = path, db

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def ids(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[str] | None:
        """The runs of an experiment by start time, ties by id: all, or those with ``tag``. Deleted ones on request."""
        with self._snapshot():
            return self._ids(experiment, tag, view_all=view_all)

    def records(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[RunRecord] | None:
        """As ``ids``, each run without its artifacts."""
        with self._snapshot():
            ids = self._ids(experiment, tag, view_all=view_all)
            found = None if ids is None else [self._record(run_id) for run_id in ids]
        return None if found is None or None in found else [run[0] for run in found if run is not None]

    def latest(self, experiment: str, tag: Tag | None) -> list[str] | None:
        """The run that started last, if any, deleted ones excepted; of several the first by id, as MLflow has it."""
        with self._snapshot():
            listed = self._listed(experiment, tag, view_all=False)
        return None if listed is None else [run_id for _, run_id in sorted(listed, key=_last_first)[:1]]

    def run(self, run_id: str) -> tuple[RunRecord, LocalFiles] | None:
        """A run without its artifacts, and where these are."""
        with self._snapshot():
            found = self._record(run_id)
        folder = None if found is None else sqlite.local_artifacts(self._path, found[1])
        return None if found is None or folder is None else (found[0], LocalFiles(folder))

    def history(self, run_id: str, names: Iterable[str]) -> dict[str, tuple[MetricPoint, ...]] | None:
        """Every logged value of the metrics ``names`` of a run, by step."""
        with self._snapshot():
            if self._db.execute(_RUN, (run_id,)).fetchone() is None:
                return None
            return {name: tuple(self._points(run_id, name)) for name in names}

    def experiment(self, experiment_id: str) -> tuple[str, dict[str, str]] | None:
        """Name and tags of an experiment."""
        with self._snapshot():
            named = self._db.execute(
                "SELECT name FROM experiments WHERE experiment_id = ?", (experiment_id,)
            ).fetchone()
            tags = "SELECT key, value FROM experiment_tags WHERE experiment_id = ?"
            return None if named is None else (named[0], dict(self._db.execute(tags, (experiment_id,))))

    def _ids(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[str] | None:
        listed = self._listed(experiment, tag, view_all=view_all)
        return None if listed is None else [run_id for _, run_id in sorted(listed)]

    def _listed(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[tuple[int, str]] | None:
        """Start time and id of the runs of an experiment."""
        found = self._db.execute(
            "SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)
        ).fetchone()
        if found is None:
            return None
        key, value = tag or (None, None)
        wanted = {"experiment": found[0], "view_all": view_all, "key": key, "value": value}
        listed = self._db.execute(_LISTED, wanted).fetchall()
        return None if any(start is None for start, _ in listed) else listed

    def _record(self, run_id: str) -> tuple[RunRecord, str] | None:
        """A run and its recorded artifact place; ``None`` also where a column is empty that MLflow fills."""
        row = self._db.execute(_RUN, (run_id,)).fetchone()
        if row is None or None in row[2:]:
            return None
        name, end, experiment_id, status, lifecycle, start, artifact_uri, _ = row
        tags = dict(self._db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
        params = dict(self._db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)))
        last = self._db.execute("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", (run_id,))
        record = RunRecord(
            run_id=run_id,
            experiment_id=str(experiment_id),
            name=name or tags.get(_RUN_NAME) or "",
            status=status,
            lifecycle=lifecycle,
            start_time_ms=start,
            end_time_ms=end,
            tags=tags,
            params=params,
            metrics={key: math.nan if is_nan else value for key, value, is_nan in last},
        )
        return record, artifact_uri

    def _points(self, run_id: str, name: str) -> Iterator[MetricPoint]:
        for step, value, is_nan, timestamp in self._db.execute(_HISTORY, (run_id, name)):
            yield MetricPoint(step, math.nan if is_nan else value, timestamp)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All queries inside see one state of the store, whoever writes meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")


def _last_first(listed: tuple[int, str]) -> tuple[int, str]:
    start, run_id = listed
    return -start, run_id


@cache
def written_schema() -> str | None:
    """The version of the tables that the installed MLflow writes: of its migrations, the one that no other follows.

    Read from the files, as importing MLflow takes seconds. ``None`` where they do not say.
    """
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0], "store", "db_migrations", "versions")
    versions: dict[str, set[str]] = {"": set(), "down_": set()}
    for file in folder.glob("*.py"):
        for kind, version in re.findall(
            r'^(down_)?revision = "(\w+)"', file.read_text("utf-8"), re.MULTILINE
        ):
            versions[kind].add(version)
    heads = versions[""] - versions["down_"]
    return heads.pop() if len(heads) == 1 else None


def _uses_workspaces() -> bool:
    return os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() not in {"", "false", "0"}


def _is_known(db: sqlite3.Connection) -> bool:
    versions = db.execute("SELECT version_num FROM alembic_version").fetchall()
    elsewhere = db.execute("SELECT 1 FROM experiments WHERE workspace != 'default' LIMIT 1").fetchone()
    return versions == [(SCHEMA,)] and elsewhere is None
