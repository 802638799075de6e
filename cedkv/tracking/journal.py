"""What a run has logged and the store has not confirmed: on this machine's disk, in order, from the moment it is logged.

A folder for each run: `journal.jsonl` with one record a line, `sent` with the number of bytes of it that the store has
confirmed, `files/` with the content of artifacts, and `run.json`, which says whose records these are. The folder is removed
when the store has all of it, so one that lies there is a run that is open, or whose process died, or whose store was away.

Where the disk is full, records stay in memory, as many as `IN_MEMORY` bytes hold, until those before them are sent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

Record = dict[str, Any]
"""`kind` is `metrics`, `tags`, `file` or `end`; the rest is what `Delivery` needs for it."""

DAMAGED: Final = "damaged"
"""Kind of what stands for a line that is no record."""
JOURNAL, SENT, FILES, RUN, LOCK = "journal.jsonl", "sent", "files", "run.json", "lock"
IN_MEMORY: Final = 1 << 28
_KEPT: Final = re.compile(rf"{FILES}/\d+/(?!\.\.?$)[^/\0]+")


class JournalFullError(RuntimeError):
    """Neither the disk nor the memory takes another record."""


class BusyError(RuntimeError):
    """Another process has the journal open."""


class Journal:
    """One writer and one reader, which may be two threads under one lock of their own; and one process at a time.

    Args:
        folder: created where it is missing; what it holds already comes first.
        header: written to `run.json`.

    Raises:
        BusyError: it is open in another process.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, header: Record | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = (folder / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BusyError(f"{str(folder)!r} is open in another process") from error
        try:
            if header is not None:
                (folder / RUN).write_text(json.dumps(header))
            self._file = (folder / JOURNAL).open("ab", buffering=0)
            self._reader = (folder / JOURNAL).open("rb")
            self._sent = (folder / SENT).open("r+b" if (folder / SENT).exists() else "w+b", buffering=0)
        except OSError:
            self._lock.close()
            raise
        self._written = self._whole()
        self._confirmed = self._position()
        self._reader.seek(self._confirmed)
        self._taken: deque[tuple[Record, int]] = deque()  # read, not confirmed: each with where it ends
        self._memory: deque[tuple[Record, int]] = deque()  # each with its size
        self._in_memory = 0
        self._next_file = 1 + max(
            (int(p.name) for p in (folder / FILES).glob("*") if p.name.isdecimal()), default=0
        )

    @property
    def header(self) -> Record:
        """What `run.json` says; empty where it cannot be read."""
        try:
            found = json.loads((self.folder / RUN).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    # ---- writing -----------------------------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record. `JournalFullError` where there is room nowhere; it is not added then."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        # Once a record is in memory, later ones follow it there: on the disk they would be sent before it.
        if not self._memory and self._write(line):
            return
        self._remember(record, len(line))

    def append_file(
        self, record: Record, write: Callable[[Path], object], content: Callable[[], bytes]
    ) -> None:
        """Add a record with a file: `write` makes it at a path; where the disk is full, `content` is kept in memory."""
        place = self.folder / FILES / str(self._next_file) / Path(record["path"]).name
        if not self._memory:
            try:
                place.parent.mkdir(parents=True)
                write(place)
            except OSError:
                shutil.rmtree(place.parent, ignore_errors=True)
            else:
                self._next_file += 1
                self.append({**record, "file": str(place.relative_to(self.folder))})
                return
        kept = content()
        self._remember({**record, "content": kept}, len(kept))

    def secure(self) -> None:
        """Return when every record would survive this process. `OSError` where some are in memory only."""
        if self._memory:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())

    def _write(self, line: bytes) -> bool:
        try:
            written = self._file.write(line)
        except OSError:
            written = 0
        if written == len(line):
            self._written += len(line)
            return True
        with suppress(OSError):  # a line that is torn is one that was never written
            self._file.truncate(self._written)
        return False

    def _remember(self, record: Record, size: int) -> None:
        if self._in_memory + size > IN_MEMORY:
            raise JournalFullError(
                f"the disk of {str(self.folder)!r} is full and {self._in_memory >> 20} MiB wait in memory"
            )
        self._memory.append((record, size))
        self._in_memory += size

    # ---- reading -----------------------------------------------------------------------------------------------------

    def take(self, most: int) -> list[Record]:
        """The oldest records that are not confirmed, at most `most`. Asked again before `confirm`, the same ones."""
        while len(self._taken) < most:
            start = self._taken[-1][1] if self._taken else self._confirmed
            if start >= self._written:
                break
            self._reader.seek(start)
            line = self._reader.readline()
            self._taken.append((_read(line), start + len(line)))
        found = [record for record, _ in list(self._taken)[:most]]
        return found + [record for record, _ in list(self._memory)[: most - len(found)]]

    def confirm(self, count: int) -> None:
        """The store has the `count` oldest records."""
        for _ in range(count):
            if self._taken:
                record, self._confirmed = self._taken.popleft()
                if "file" in record:
                    shutil.rmtree((self.folder / record["file"]).parent, ignore_errors=True)
            else:
                self._in_memory -= self._memory.popleft()[1]
        with suppress(OSError):  # then they are sent once more, which changes nothing
            os.pwrite(self._sent.fileno(), b"%020d\n" % self._confirmed, 0)

    @property
    def empty(self) -> bool:
        """Whether the store has all of it."""
        return self._confirmed >= self._written and not self._memory

    def remove(self) -> None:
        """Remove what is on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let it go."""
        for file in (self._file, self._reader, self._sent, self._lock):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole(self) -> int:
        """Bytes up to the end of the last whole line; what a process that died has torn behind it is cut off."""
        size = os.fstat(self._file.fileno()).st_size
        end = size
        while end > 0:
            start = max(0, end - 65536)
            self._reader.seek(start)
            found = self._reader.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)
        return end

    def _position(self) -> int:
        """Where the store's confirmation ends; the beginning where that cannot be read."""
        text = os.pread(self._sent.fileno(), 21, 0)
        found = int(text) if text[:20].isdigit() and len(text) == 21 else 0
        return found if found <= self._written else 0


def _read(line: bytes) -> Record:
    """The record that a line holds, where it is one that `append` may have written."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and _is_record(found):
            return found
    return {"kind": DAMAGED}


def _is_record(found: Record) -> bool:
    match found:
        case {"kind": "metrics", "points": list(points)}:
            return all(_is_point(point) for point in points)
        case {"kind": "tags", "tags": dict(tags)}:
            return all(isinstance(value, str) for value in tags.values())
        case {"kind": "file", "path": str(), "file": str(file)}:
            return _KEPT.fullmatch(file) is not None  # what it names is removed once it is sent
        case {"kind": "end", "status": str(), "reason": str(), "time_ms": int()}:
            return True
    return False


def _is_point(found: Any) -> bool:
    match found:
        case [str(), int() | float(), int(time_ms), int(step)]:
            return max(abs(time_ms), abs(step)) < 1 << 63
    return False
