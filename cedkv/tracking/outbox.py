"""One thread between the training loop and the store: it sends what the journal holds, in order.

The loop pays for a line in a file, whatever the store does. A store that is away is tried again, ever more slowly, until it
is back. MLflow's own asynchronous logging loses records without a word.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cedkv.tracking.backend import TrackingError, brief
from cedkv.tracking.delivery import METRICS_PER_REQUEST, batch_of, may_pass, points_in
from cedkv.tracking.journal import Journal, JournalFullError, Record

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 15.0
_LOOK_S: Final = 0.5
_SILENT_S: Final = 2.0
"""A wait for the store that is longer than this is told."""

_log = logging.getLogger(__name__)


class Outbox:
    """Sends the records of a journal.

    Args:
        journal: nobody else may use it while the outbox is open.
        deliver: writes some records to the store; called on the outbox's thread only.
        linger_s: seconds a record may wait for others to share its request.
        give_up: asked while a flush waits for a store that is away, whether it shall wait no longer.

    An error that will not pass (`may_pass`) stops the thread: what waits is counted as lost, and every later ``put``,
    ``flush`` and ``close`` raises ``TrackingError`` from it. What waits stays in the journal.
    """

    def __init__(
        self,
        journal: Journal,
        deliver: Callable[[Sequence[Record]], object],
        *,
        linger_s: float = 2.0,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._journal, self._deliver, self._linger_s = journal, deliver, linger_s
        self._give_up = give_up
        self._changed = threading.Condition()
        self._points = 0  # that wait
        self._hurry = 0  # flushes and closes that wait
        self._closed = self._abandoned = self._away = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cedkv-log", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Add a record to the journal."""
        with self._changed:
            self._check_open()
            try:
                self._journal.append(record)
            except JournalFullError as error:
                raise TrackingError(f"a record could not be kept: {error}") from error
            self._added(record)

    def put_file(self, record: Record, write: Callable[[Path], object], content: Callable[[], bytes]) -> None:
        """Add a record with a file, see `Journal.append_file`."""
        with self._changed:
            self._check_open()
            try:
                self._journal.append_file(record, write, content)
            except JournalFullError as error:
                raise TrackingError(f"{record['path']} could not be kept: {error}") from error
            self._added(record)

    def secure(self) -> None:
        """Return when everything put so far would survive this process. ``OSError`` where the disk does not take it."""
        with self._changed:
            self._check_open()
            self._journal.secure()

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything put so far is in the store. ``TrackingError`` after an error or ``timeout_s``."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                done = self._wait(timeout_s)
            finally:
                self._hurry -= 1
            self._raise_error()
            if not done:
                raise TrackingError(
                    f"the tracking store does not take what is logged; {self._points} records wait in "
                    f"{str(self._journal.folder)!r}: `cedkv sync` sends them once it is back"
                )

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, then end the thread. Records put afterwards are refused."""
        try:
            self.flush(timeout_s)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the thread, whatever waits: the journal has it."""
        with self._changed:
            self._closed = self._abandoned = True
            self._changed.notify_all()
        self._thread.join(_SILENT_S)  # a request that goes on may end when it likes: it will be sent again

    def _wait(self, timeout_s: float | None) -> bool:
        """Wait until all is sent; say so where that takes its time. False: it took too long, or was given up."""
        begun = time.monotonic()
        until = math.inf if timeout_s is None else begun + timeout_s
        told = False
        while not self._changed.wait_for(self._idle, min(_LOOK_S, max(0.0, until - time.monotonic()))):
            now = time.monotonic()
            if now >= until or (self._away and self._give_up()):
                return False
            if self._away and not told and now - begun > _SILENT_S:
                told = True
                longest = "" if timeout_s is None else f" up to {timeout_s:g} s"
                _log.warning("waiting%s for the tracking store to take %d records", longest, self._points)
        return True

    def _added(self, record: Record) -> None:
        first = not self._points
        self._points += points_in(record)
        # A thread that is woken for less takes the interpreter from the loop for nothing.
        if first or self._ripe():
            self._changed.notify_all()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while records := self._next():
            try:
                self._deliver(records)
            except BaseException as error:  # noqa: BLE001  (the loop's next call raises it there)
                if not may_pass(error):
                    self._fail(error)
                    return
                self._wait_for_store(error, pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            with self._changed:
                if self._abandoned:  # the journal is somebody else's now
                    return
                if self._away:
                    self._away = False
                    _log.warning("the tracking store is back")
                self._journal.confirm(len(records))
                self._points -= sum(map(points_in, records))
                self._changed.notify_all()

    def _next(self) -> list[Record]:
        """The next records of one request; wait for some. None when the outbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._points or self._closed)
            self._changed.wait_for(self._ripe, self._linger_s)
            return [] if self._abandoned else batch_of(self._journal.take(METRICS_PER_REQUEST))

    def _wait_for_store(self, error: BaseException, pause: float) -> None:
        with self._changed:
            if not self._away:
                self._away = True
                _log.warning(
                    "the tracking store does not answer (%s); what is logged waits in %s",
                    brief(error),
                    self._journal.folder,
                )
            self._changed.wait_for(lambda: self._abandoned, pause)

    def _ripe(self) -> bool:
        return bool(self._hurry or self._closed or self._points >= METRICS_PER_REQUEST)

    def _idle(self) -> bool:
        return self._error is not None or self._closed or not self._points

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _check_open(self) -> None:
        self._raise_error()
        if self._closed:
            raise TrackingError("the run has ended; nothing can be logged to it any more")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise TrackingError(
                f"the tracking store failed and {self._points} records were not written: {brief(self._error)}"
            ) from self._error
