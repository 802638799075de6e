"""One bounded queue and one thread between the training loop and the store.

The loop pays microseconds per record while the store keeps up, and waits while it does not; order is kept; nothing is
dropped in silence. MLflow's own asynchronous logging gives none of the three.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cedkv.tracking.backend import TrackingError

Record = TypeVar("Record")
Job = Callable[[], object]


class Outbox(Generic[Record]):
    """Sends records, in batches, and jobs, one by one, in the order they were put.

    Args:
        send: writes up to ``batch`` records to the store; called on the outbox's thread only.
        capacity: records and jobs that may wait; ``put`` blocks beyond that.
        batch: the most records per call of ``send``.
        linger_s: seconds a record may wait for others to share its batch.

    The first error stops the thread: what waits is counted as lost, and every later ``put``, ``flush`` and ``close``
    raises ``TrackingError`` from it.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Record]], object],
        *,
        capacity: int = 20_000,
        batch: int = 1000,
        linger_s: float = 2.0,
    ) -> None:
        self._send, self._capacity, self._batch, self._linger_s = send, capacity, batch, linger_s
        self._waiting: deque[Record | _Boxed] = deque()
        self._changed = threading.Condition()
        self._hurry = 0  # flushes and closes that wait
        self._sending = 0
        self._closed = False
        self._error: BaseException | None = None
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="cedkv-log", daemon=True)
        self._thread.start()

    def put(self, records: Sequence[Record]) -> None:
        """Queue ``records``; block while the queue is full."""
        self._enqueue(records)

    def put_job(self, job: Job) -> None:
        """Queue ``job`` to run on the outbox's thread after everything queued before it."""
        self._enqueue([_Boxed(job)])

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything put so far is in the store. ``TrackingError`` after an error or ``timeout_s``."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                done = self._changed.wait_for(self._idle, timeout_s)
            finally:
                self._hurry -= 1
            self._raise_error()
            if not done:
                left = len(self._waiting) + self._sending
                raise TrackingError(
                    f"the tracking store took no record for {timeout_s:g} s; {left} records wait"
                )

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, then end the thread. Records put afterwards are refused."""
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
        self._thread.join(timeout_s)

    def _enqueue(self, items: Sequence[Record | _Boxed]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._stopped())
            self._raise_error()
            if self._closed:
                raise TrackingError("the run has ended; nothing can be logged to it any more")
            first = not self._waiting
            self._waiting.extend(items)
            if (
                first or self._ripe()
            ):  # a thread that is woken for less takes the interpreter from the loop for nothing
                self._changed.notify_all()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                if isinstance(work, _Boxed):
                    work.job()
                else:
                    self._send(work)
            except BaseException as error:  # noqa: BLE001  (the loop's next call raises it there)
                self._fail(error)
                return
            with self._changed:
                self._sending = 0
                self._changed.notify_all()

    def _next(self) -> list[Record] | _Boxed | None:
        """Take the next job or the next batch; wait for one; ``None`` when the outbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(self._ripe, self._linger_s)
            if not self._waiting:
                return None
            first = self._waiting.popleft()
            if isinstance(first, _Boxed):
                self._sending = 1
                return first
            records = [first]
            while self._waiting and len(records) < self._batch and not isinstance(self._waiting[0], _Boxed):
                records.append(self._waiting.popleft())  # type: ignore[arg-type]
            self._sending = len(records)
            return records

    def _ripe(self) -> bool:
        return bool(self._hurry or self._closed or len(self._waiting) >= self._batch)

    def _idle(self) -> bool:
        return self._stopped() or not (self._waiting or self._sending)

    def _stopped(self) -> bool:
        return self._error is not None or self._closed

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._lost = len(self._waiting) + self._sending
            self._waiting.clear()
            self._sending = 0
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            reason = " ".join(str(self._error).split())[:600] or type(self._error).__name__
            raise TrackingError(
                f"the tracking store failed and {self._lost} records were not written: {reason}"
            ) from self._error


class _Boxed:
    """A job in the queue, told apart from a record by its type."""

    __slots__ = ("job",)

    def __init__(self, job: Job) -> None:
        self.job = job
