"""Where the wall time of a run goes, by parts that add up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cedkv import ledger


class Clock:
    """Seconds by part of the run (`ledger.PARTS`), from the moment it is made.

    Parts do not nest: one that begins inside another interrupts it, so that no second counts twice.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started = self._booked = now()
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what the block takes to `name`, except for what parts inside it take."""
        ledger.seconds(name)  # refuses a name that the log does not know
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        """What has passed since the last time goes to the part that was going on."""
        now = self._now()
        if self._open:
            name = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._booked
        self._booked = now

    @property
    def seconds(self) -> dict[str, float]:
        """So far, in the order of `ledger.PARTS`; parts that never began are left out."""
        self._book()
        return {name: self._seconds[name] for name in ledger.PARTS if name in self._seconds}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count in what a part of the run took that was in another process."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
        self._started -= sum(seconds.values())

    def metrics(self) -> dict[str, float]:
        """Seconds so far, by their names in the log, and in total."""
        parts = {ledger.seconds(name): value for name, value in self.seconds.items()}
        return parts | {ledger.SECONDS_TOTAL: self._booked - self._started}

    def split(self) -> str:
        """One line for people, e.g. ``61 s: load 9, capture 12, train 40``; parts that round to nothing are left out."""
        seconds = self.seconds
        total = self._booked - self._started
        digits = 0 if total >= 20 else 1
        shown = {name: f"{value:.{digits}f}" for name, value in seconds.items()}
        told = [f"{name} {value}" for name, value in shown.items() if float(value) > 0]
        return f"{total:.{digits}f} s: {', '.join(told)}"


class RunLog(Protocol):
    """What a run that is open for writing takes."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`."""

    def log_json(self, path: str, content: Any) -> None:
        """Write the JSON artifact `path`."""

    def log_jsonl(self, path: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `rows` as the artifact `path`, a line each."""

    def log_text(self, path: str, text: str) -> None:
        """Write the text artifact `path`."""

    def log_file(self, path: str, source: Path) -> None:
        """Copy the file `source` to the artifact `path`."""


class TimedLog:
    """A run's log; what its calls take is the part `log` of the clock."""

    def __init__(self, log: RunLog, clock: Clock) -> None:
        self._log, self._clock = log, clock

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`."""
        with self._clock.part("log"):
            self._log.log_metrics(metrics, step)

    def log_json(self, path: str, content: Any) -> None:
        """Write the JSON artifact `path`."""
        with self._clock.part("log"):
            self._log.log_json(path, content)

    def log_jsonl(self, path: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `rows` as the artifact `path`, a line each."""
        with self._clock.part("log"):
            self._log.log_jsonl(path, rows)

    def log_text(self, path: str, text: str) -> None:
        """Write the text artifact `path`."""
        with self._clock.part("log"):
            self._log.log_text(path, text)

    def log_file(self, path: str, source: Path) -> None:
        """Copy the file `source` to the artifact `path`."""
        with self._clock.part("log"):
            self._log.log_file(path, source)
