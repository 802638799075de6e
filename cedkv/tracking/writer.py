"""Writing a run: everything in order, nothing lost in silence, and a final status that says what happened."""

from __future__ import annotations

import getpass
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cedkv import ledger
from cedkv.core.errors import StoppedError, UserError
from cedkv.tracking import sqlite
from cedkv.tracking.backend import MlflowClient, MlflowException, Param, TrackingError, store_errors
from cedkv.tracking.delivery import METRICS_PER_REQUEST, Delivery
from cedkv.tracking.encode import encode_json, encode_lines
from cedkv.tracking.journal import BusyError, Journal
from cedkv.tracking.names import (
    MAX_TAG,
    NONFINITE_PREFIX,
    check_artifact_path,
    check_experiment,
    check_key,
    clip,
    flatten,
)
from cedkv.tracking.outbox import Outbox
from cedkv.tracking.reopen import Before, Resumed, reopen
from cedkv.tracking.signals import Interruptible, Terminated
from cedkv.tracking.spool import replay, spool_of
from cedkv.tracking.store import database_path, is_sqlite, open_client, prepare_store, shown

PARAMS_PER_REQUEST: Final = 100
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


_KIND: Final = "mlflow.experimentKind"
"""Tag by which MLflow's pages choose their layout: that for training, not that for chats."""


class RunWriter(Interruptible):
    """A run of the log, open for writing: ``with RunWriter(uri, experiment, ...) as run: run.log_metrics(...)``.

    Args:
        uri: a resolved tracking URI (`store.resolve_uri`); a local store is created when it is missing.
        experiment: created when it is missing.
        name: the run's name; not unique, and never its identity. ``None`` lets MLflow choose one.
        tags: logged at the start. Values over 5,000 characters end in their hash.
        params: nested settings, logged flat with dotted names. Values over 6,000 characters end in their hash.
        resumes: the run that goes on, and where; `tags` are set on it, its name and parameters stay as they are.
        close_timeout_s: seconds the end of the run waits for the store to take what is queued.

    ``log_*`` and ``set_tags`` write to a journal on this machine's disk and return; one thread sends it to the store, in order
    and as often as it takes. Where the store refuses for good, the next call and the end of the block raise
    ``TrackingError`` with the number of records that are missing. Where it is away at the end, the block waits
    ``close_timeout_s``, then raises, and the journal stays for `cedkv sync`: nothing is lost.

    The run ends FINISHED after a clean exit (also ``sys.exit(0)``), KILLED after Ctrl-C, SIGTERM, SIGHUP or `StoppedError`, and
    FAILED after any other exception, ``sys.exit(n)`` or records that the store did not take; tag ``cedkv.error``
    says why. Only a process that dies without running Python (SIGKILL, power) leaves it RUNNING, which no gate passes; `cedkv
    sync` sends what it had logged and marks it FAILED.
    While the block is open in the main thread, SIGTERM and SIGHUP raise `Terminated`.

    Not finite values are logged as NaN (MLflow turns an infinity into 1.8e308), and ``nonfinite/<name>`` counts them.
    """

    run_id: str
    experiment_id: str
    start_time_ms: int

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        resumes: Resumed | None = None,
        close_timeout_s: float = 300.0,
    ) -> None:
        self.uri, self.experiment, self.name = uri, check_experiment(experiment), name
        self._tags = _checked_tags(tags or {})
        self._params = list(flatten(params or {}))
        self._resumes, self._before = resumes, Before()
        self._close_timeout_s = close_timeout_s
        super().__init__()
        self._nonfinite: Counter[str] = Counter()
        self._known: set[str] = set()

    def __enter__(self) -> Self:
        prepare_store(self.uri)
        self._client = open_client(self.uri)
        self._database = _Identity(database_path(self.uri)) if is_sqlite(self.uri) else None
        self._guard.install()
        self._guard.hold()  # between creating the run and owning it, nothing may interrupt
        try:
            with store_errors(f"starting a run in {shown(self.uri)}"):
                self._start()
        except BaseException:
            self._guard.restore()
            raise
        check = self._database.check if self._database is not None else lambda: None
        deliver = Delivery(self._client, self.run_id, self._journal.folder, check)
        # Whoever asks for the end while the store is away need not wait: what is logged is in the journal.
        self._outbox = Outbox(self._journal, deliver, give_up=lambda: self._guard.waiting)
        try:
            if self._resumes is None:
                with store_errors(f"logging the settings to {shown(self.uri)}"):
                    self._log_params()
            self._guard.release()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log ``metrics`` at ``step``; values are anything ``float`` takes (numbers, booleans, 0-d tensors)."""
        now = time.time_ns() // 1_000_000
        numbers = {self._checked(name): float(value) for name, value in metrics.items()}
        found: list[tuple[str, float]] = []
        for name, number in numbers.items():
            if math.isfinite(number):
                found.append((name, number))
            else:
                self._nonfinite[name] += 1
                found += [(name, math.nan), (NONFINITE_PREFIX + name, float(self._nonfinite[name]))]
        points = [(name, value, now, step) for name, value in found if self._before.is_new(name, step, value)]
        for first in range(0, len(points), METRICS_PER_REQUEST):
            self._outbox.put({"kind": "metrics", "points": points[first : first + METRICS_PER_REQUEST]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or overwrite tags."""
        self._outbox.put({"kind": "tags", "tags": _checked_tags(tags)})

    def log_json(self, path: str, content: Any) -> None:
        """Write ``content`` as the JSON artifact ``path``. NaN and infinities become ``null``, and are counted."""
        text, nonfinite = encode_json(content)
        self._log_encoded(path, text, nonfinite)

    def log_jsonl(self, path: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``rows`` as the artifact ``path``, one canonical JSON line each (the lines that `content_hash` hashes)."""
        text, nonfinite = encode_lines(rows)
        self._log_encoded(path, text, nonfinite)

    def log_text(self, path: str, text: str) -> None:
        """Write ``text`` as the UTF-8 artifact ``path``."""
        check_artifact_path(path)
        content = text.encode()
        self._outbox.put_file(
            {"kind": "file", "path": path}, lambda place: place.write_bytes(content), lambda: content
        )

    def log_file(self, path: str, source: Path) -> None:
        """Copy the file ``source`` to the artifact ``path``; when this returns, ``source`` may change or go."""
        check_artifact_path(path)
        if not source.is_file():
            raise UserError(f"{str(source)!r} is not a file that can be logged as {path!r}; write it first")
        self._outbox.put_file(
            {"kind": "file", "path": path}, lambda place: shutil.copyfile(source, place), source.read_bytes
        )

    def flush(self) -> None:
        """Return when everything logged so far is in the store."""
        self._outbox.flush()

    def secure(self) -> None:
        """Return when nothing logged so far can be lost with this process. ``OSError`` where the disk does not take it."""
        self._outbox.secure()

    def _start(self) -> None:
        if self._resumes is not None:
            self._journal = self._opened(self._resumes.run_id)
            try:
                # What its last process could not send comes before what it logs now.
                replay(self._journal, Delivery(self._client, self._resumes.run_id, self._journal.folder))
                run, self._before = reopen(self._client, self._resumes, self._tags)
            except BaseException:
                self._journal.close()
                raise
            self._nonfinite = self._before.nonfinite
            self.experiment_id, self.run_id = run.info.experiment_id, run.info.run_id
            self.name, self.start_time_ms = run.info.run_name, run.info.start_time
            return
        self.experiment_id = experiment_id_of(self._client, self.experiment, self.uri)
        run = self._client.create_run(self.experiment_id, tags=origin() | self._tags, run_name=self.name)
        self.run_id, self.name = run.info.run_id, run.info.run_name
        self.start_time_ms = run.info.start_time
        try:
            self._journal = self._opened(self.run_id)
        except UserError:
            self._client.set_terminated(self.run_id, FAILED)
            raise

    def _opened(self, run_id: str) -> Journal:
        header = {"run_id": run_id, "store": shown(self.uri), "experiment": self.experiment}
        folder = spool_of(run_id, self.uri)
        try:
            return Journal(folder, header)
        except (OSError, BusyError) as error:
            raise UserError(
                f"the log of run {run_id} cannot be kept in {str(folder)!r} ({error}): make that a folder that this user may "
                "write, or end the process that has it"
            ) from error

    def _checked(self, name: str) -> str:
        if name not in self._known:
            self._known.add(check_key(name))
        return name

    def _log_params(self) -> None:
        params = [Param(name, value) for name, value in self._params]
        for first in range(0, len(params), PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=params[first : first + PARAMS_PER_REQUEST])

    def _log_encoded(self, path: str, text: str, nonfinite: int) -> None:
        self.log_text(path, text)
        if nonfinite:
            self.log_metrics({NONFINITE_PREFIX + path: nonfinite}, step=0)

    def _end(self, error: BaseException | None) -> None:
        """Log the terminal status, wait until the store has everything, then let held-back signals through."""
        self._guard.hold()
        status, reason = _outcome(error)
        failure: Exception | None = None
        held: BaseException | None = None
        try:
            try:
                self._close(status, reason)
            except TrackingError as lost:
                failure = lost
                self._mark_failed(status, reason, lost)
        finally:
            self._leave_journal()
            held = self._guard.restore()
        if error is not None:
            if failure is not None:
                error.add_note(f"and the log is incomplete: {failure}")
        elif failure is not None:
            raise failure
        elif held is not None:
            raise held

    def _close(self, status: str, reason: str) -> None:
        end = {
            "kind": "end",
            "status": status,
            "reason": clip(reason, MAX_TAG) if reason else "",
            "time_ms": time.time_ns() // 1_000_000,
        }
        try:
            self._outbox.flush(self._close_timeout_s)
        except BaseException:
            with suppress(TrackingError):  # after a refusal nothing is taken
                self._outbox.put(end)
            self._outbox.abandon()
            raise
        self._outbox.put(end)
        self._outbox.close(self._close_timeout_s)
        if self._database is not None:
            sqlite.checkpoint(database_path(self.uri))

    def _leave_journal(self) -> None:
        """Let it go, and remove it where the store has all of it."""
        if self._journal.empty:
            self._journal.remove()
        self._journal.close()

    def _mark_failed(self, status: str, reason: str, lost: TrackingError) -> None:
        """Where the store took no more, try to say so there; the one that is away learns it from `cedkv sync`."""
        if lost.__cause__ is None:
            return
        status, reason = (FAILED, str(lost)) if status == FINISHED else (status, reason)
        with suppress(MlflowException, TrackingError, OSError):
            if self._database is not None:
                self._database.check()
            self._client.set_tag(self.run_id, ledger.TAG_ERROR, clip(reason, MAX_TAG))
            self._client.set_terminated(self.run_id, status)


class _Identity:
    """A database file as it was at the start. Linux lets a process write on into a deleted file: that would be loss."""

    def __init__(self, path: Path) -> None:
        self._path, self._was = path, self._now(path)

    def check(self) -> None:
        """Raise ``TrackingError`` when the file is gone or is another one."""
        try:
            same = self._now(self._path) == self._was
        except OSError:
            same = False
        if not same:
            raise TrackingError(
                f"the database {str(self._path)!r} was removed or replaced while the run was open"
            )

    @staticmethod
    def _now(path: Path) -> tuple[int, int]:
        stat = path.stat()
        return stat.st_dev, stat.st_ino


def _outcome(error: BaseException | None) -> tuple[str, str]:
    """The terminal status of a run whose block ended with ``error``, and the reason; empty when all is well."""
    if error is None:
        return FINISHED, ""
    if isinstance(error, Terminated | StoppedError):
        return KILLED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return KILLED, "interrupted from the keyboard"
    if isinstance(error, SystemExit):
        return (FAILED, f"exit status {error.code}") if error.code else (FINISHED, "")
    return FAILED, f"{type(error).__name__}: {error}"


def experiment_id_of(client: MlflowClient, name: str, uri: str) -> str:
    """The id of the experiment ``name``, created when it is missing; another process may be doing the same."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location, tags = None, {_KIND: "custom_model_development"}
        if is_sqlite(uri):
            folder = sqlite.artifact_location(database_path(uri), name)
            location, tags = str(folder), {**tags, sqlite.ARTIFACTS_TAG: folder.name}
        try:
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None, "an experiment that exists has a name"
    if found.lifecycle_stage != "active":
        raise UserError(
            f"experiment {name!r} is deleted; a run needs an active one: restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or choose another name"
        )
    return found.experiment_id


def origin() -> dict[str, str]:
    """What the MLflow UI shows as a run's user and source."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return {"mlflow.user": user, "mlflow.source.name": "cedkv", "mlflow.source.type": "LOCAL"}


def _checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {check_key(name, "tag"): clip(str(value), MAX_TAG) for name, value in tags.items()}
