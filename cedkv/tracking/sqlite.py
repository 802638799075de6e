"""The local store: one SQLite database and its artifacts beside it, created once, found again after a move."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from cedkv.core.errors import UserError

ARTIFACTS: Final = "artifacts"
ARTIFACTS_TAG: Final = "cedkv.artifacts"
"""Experiment tag: the name of its folder in ``artifacts/``. Says that the artifacts belong beside the database."""

_PLACES: Final = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Where MLflow records the places of artifacts, beside those of experiments."""
_LOCK_SECONDS: Final = 120.0
_BUSY_SECONDS: Final = 20.0


def check(path: Path) -> None:
    """Raise ``UserError`` where ``prepare`` would, before there is anything to log. Creates nothing."""
    try:
        try_writing(path.parent / ARTIFACTS)
        if _has_schema(path):
            _check_writable(path)
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(path, error) from error


def try_writing(folder: Path) -> None:
    """Raise ``OSError`` where nothing could be written to ``folder``, or where it is missing, it not be made there."""
    with tempfile.TemporaryFile(dir=next(part for part in (folder, *folder.parents) if part.exists())):
        pass


def prepare(path: Path) -> None:
    """Create the database at ``path`` unless it exists; check that it can be written; adopt a moved store.

    Raises ``UserError``, and then leaves nothing behind that was not there before.
    """
    made: list[Path] = []
    try:
        made = _make_folders(path.parent / ARTIFACTS)
        with _lock(path):
            if not _has_schema(path):
                _create(path)
            _check_writable(path)
            _adopt_moved(path)
    except (OSError, sqlite3.Error, Timeout) as error:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise _unwritable(path, error) from error
    except UserError:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def require(path: Path) -> None:
    """Raise ``UserError`` unless ``path`` is a database made by MLflow. Creates nothing."""
    if not path.is_file():
        raise UserError(
            f"tracking store {str(path)!r} does not exist; a run creates it: train first, or point tracking.uri or "
            "MLFLOW_TRACKING_URI at the store that holds the run"
        )
    try:
        ready = _has_schema(path)
    except sqlite3.Error as error:
        remedy = (
            "SQLite needs to write beside it even to read: copy the folder and name the copy"
            if "readonly" in str(error)
            else "restore it from a backup"
        )
        raise UserError(f"tracking store {str(path)!r} cannot be read ({error}); {remedy}") from error
    if not ready:
        raise UserError(f"tracking store {str(path)!r} is empty; a run fills it: train first")


def checkpoint(path: Path) -> None:
    """Bring what the ``-wal`` file holds into the database, so that a copy of the database alone is complete.

    Best effort: a reader that is just looking, or a store that is away, leaves it for the next time.
    """
    with suppress(sqlite3.Error), closing(_connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def artifact_location(path: Path, experiment: str) -> Path:
    """Where an experiment's artifacts go: a folder beside the database, named after the experiment.

    A name that is no plain folder name keeps its readable part and gains eight digits of its hash.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", experiment).strip("._")[:80]
    if plain != experiment:
        plain = f"{plain or 'experiment'}-{sha256(experiment.encode()).hexdigest()[:8]}"
    return path.parent / ARTIFACTS / plain


def local_artifacts(path: Path, artifact_uri: str) -> Path | None:
    """The folder of a run's artifacts, beside the database if it is there: MLflow stores absolute paths.

    ``None`` when the artifacts are not on this machine's disk.
    """
    recorded = _local(artifact_uri)
    if recorded is None:
        return None
    beside = path.parent / ARTIFACTS / Path(*recorded.parts[-3:])  # experiment / run / artifacts
    return beside if beside.is_dir() else recorded


def _make_folders(folder: Path) -> list[Path]:
    """Create ``folder`` and its parents; return the new ones, outermost first."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()][::-1]
    made: list[Path] = []
    try:
        for part in missing:
            with suppress(FileExistsError):
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):  # a folder that exists may still be read-only
            pass
    except OSError:
        for part in reversed(made):
            with suppress(OSError):
                part.rmdir()
        raise
    return made


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    name = path.with_name(f".{path.name}.lock")
    with FileLock(name, timeout=_LOCK_SECONDS):
        try:
            yield
        finally:
            # Harmless to a process that still waits for the removed file: `_publish` never replaces a database.
            name.unlink(missing_ok=True)


def _has_schema(path: Path) -> bool:
    """Whether MLflow has set this database up. ``UserError`` when it belongs to another application."""
    if not path.exists():
        return False
    with closing(_connect(path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not {"alembic_version", "experiments"} <= tables:
        raise UserError(
            f"tracking store {str(path)!r} is a database of another application (table {min(tables)!r}); "
            "name a file of its own: set tracking.uri or MLFLOW_TRACKING_URI"
        )
    return bool(tables)


def _create(path: Path) -> None:
    """Build the database under another name, then give it its own: nobody ever opens half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    os.close(handle)
    draft = Path(name)
    try:
        _migrate(draft, path.parent / ARTIFACTS)
        with closing(_connect(draft)) as db:
            db.execute(
                "PRAGMA journal_mode = WAL"
            )  # kept in the file; a share that cannot do it stays as it was
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.chmod(0o666 & ~_umask())
        _publish(draft, path)
    finally:
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm"), Path(f"{draft}-journal")):
            leftover.unlink(missing_ok=True)


def _migrate(draft: Path, artifacts: Path) -> None:
    """Let MLflow make its tables. Its 60-odd migrations are the way; its models alone give another schema."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from cedkv.tracking.backend import SqlAlchemyStore, quiet

    def unsafe_and_fast(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # the finished file is synced once instead

    event.listen(Engine, "connect", unsafe_and_fast)
    try:
        with quiet():
            store = SqlAlchemyStore(f"sqlite:///{draft}", str(artifacts))
            store.engine.dispose()
    finally:
        event.remove(Engine, "connect", unsafe_and_fast)


def _publish(draft: Path, path: Path) -> None:
    if path.exists() and path.stat().st_size == 0:
        path.unlink()  # made empty by hand or by a tool: nothing is lost
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return  # another process was first, and its database is as good
    except OSError:  # a file system without hard links; the lock still keeps the others away
        draft.rename(path)


def _check_writable(path: Path) -> None:
    with closing(_connect(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")


def _adopt_moved(path: Path) -> None:
    """Point experiments at the artifacts beside the database, after the whole store was moved or copied.

    MLflow records absolute paths: without this, a copied store would write into the original. Only experiments that
    carry `ARTIFACTS_TAG` are touched, and none whose artifacts still lie at the old place alone.
    """
    query = (
        "SELECT e.experiment_id, e.artifact_location, t.value FROM experiments e JOIN experiment_tags t "
        "ON t.experiment_id = e.experiment_id WHERE t.key = ?"
    )
    with closing(_connect(path)) as db, db:
        for experiment, recorded, folder in db.execute(query, (ARTIFACTS_TAG,)).fetchall():
            old, new = _local(recorded), path.parent / ARTIFACTS / folder
            if old is None or old == new or (old.exists() and not new.exists()):
                continue
            db.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (str(new), experiment)
            )
            for table, column in _PLACES:
                db.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of our own
                    f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                    (str(new), len(recorded) + 1, experiment, len(recorded) + 1, recorded + "/"),
                )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that can write nothing and opens no transaction by itself."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # runs read one by one may be asked for by one thread after another
    )


def _local(uri: str) -> Path | None:
    """The path of a recorded artifact place: MLflow writes plain paths and ``file:`` URIs; ``None`` for the rest."""
    if uri.startswith("/"):
        return Path(uri)
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return UserError(
        f"tracking store {str(path)!r} cannot be written ({reason}); it needs a folder and a database "
        "that this user may write: set tracking.uri or MLFLOW_TRACKING_URI to another place"
    )
