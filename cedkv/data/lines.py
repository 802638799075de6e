"""JSONL files as checked rows. Every mistake is reported with file and line, several at a time."""

from __future__ import annotations

import codecs
import difflib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

MAX_LINE_BYTES = 8 * 2**20
MAX_REPORTED = 20


def shown(value: object, width: int = 60) -> str:
    """`value` as it appears in a message: quoted, cut at ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


@dataclass(slots=True)
class Problems:
    """The mistakes found in one file so far."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        """Note a mistake at ``line`` (from 1)."""
        self.found.append(f"{self.path}:{line}: {text}")

    def check(self) -> None:
        """Raise one ``UserError`` that lists the first `MAX_REPORTED` mistakes, if there are any."""
        if self.found:
            rest = len(self.found) - MAX_REPORTED
            more = [f"... and {rest} more in this file"] if rest > 0 else []
            raise UserError("\n".join(self.found[:MAX_REPORTED] + more))


@dataclass(slots=True)
class Row:
    """One JSON object of a file. The readers of fields note a mistake and clear ``ok`` instead of raising."""

    line: int
    data: dict[str, Any]
    problems: Problems
    ok: bool = True

    def fail(self, text: str) -> None:
        """Note a mistake in this row."""
        self.ok = False
        self.problems.add(self.line, text)

    def keys(self, required: Sequence[str], optional: Sequence[str]) -> None:
        """Check that all ``required`` keys are there and none but those and the ``optional`` ones."""
        allowed = [*required, *optional]
        for key in self.data:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(map(repr, allowed))}"
                self.fail(f"unknown key {shown(key)}; {remedy}")
        for key in required:
            if key not in self.data:
                self.fail(f"key {key!r} is missing; every row needs {', '.join(map(repr, required))}")

    def text(self, key: str) -> str:
        """The text under ``key``: a string with something other than white space in it. "" where absent or wrong."""
        if key not in self.data:
            return ""
        value = self.data[key]
        fault = text_fault(value)
        if fault is None:
            return str(value)
        self.fail(f"{key!r} is {shown(value)}; {fault}")
        return ""

    def choice(self, key: str, options: Sequence[str]) -> str | None:
        """The value under ``key``, one of ``options``; ``None`` where absent or wrong."""
        if key not in self.data:
            return None
        value = self.data[key]
        if isinstance(value, str) and value in options:
            return value
        self.fail(
            f"{key!r} is {shown(value)}; it must be one of {', '.join(map(repr, options))}, or left out"
        )
        return None


def text_fault(value: object) -> str | None:
    """What is wrong with ``value`` as a text, and the remedy; ``None`` if nothing is."""
    if not isinstance(value, str):
        return f"it must be a string, not {type(value).__name__}: quote it or fill it in"
    if not value.strip():
        return "it must not be empty or blank: fill it in or delete the row"
    if "\0" in value:
        return "it must not contain the NUL character: remove it"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return r"it contains half of a surrogate pair (\ud800 to \udfff), which is no character: remove it"
    return None


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield the rows of the JSONL file at ``path``. Blank lines, a UTF-8 byte order mark and CRLF are accepted.

    Lines that are no JSON object are noted in ``problems`` and skipped. ``UserError`` at once where the file cannot
    be read or holds no row at all.
    """
    count = 0
    try:
        with path.open("rb") as file:
            for number, raw in _lines(file):
                data = _parse(raw, number, problems)
                if data is not None:
                    count += 1
                    yield Row(number, data, problems)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); give the path of a readable JSONL file, relative to the working "
            "directory"
        ) from error
    if count == 0 and not problems.found:
        raise UserError(f"{path}: holds no rows; a data file needs at least one JSON object, one per line")


def unique(row: Row, what: str, key: object, seen: dict[Any, int]) -> None:
    """Note a mistake if ``key`` was seen at an earlier line; remember it otherwise."""
    if key in seen:
        row.fail(f"{what} was given at line {seen[key]} already; delete or change one of the two")
    else:
        seen[key] = row.line


def suggestion(name: str, known: Collection[str]) -> str:
    """``; did you mean ...?`` where a known name is close to ``name``, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without their ends; ``None`` for one over the limit. Only one line is ever in memory."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if len(raw.rstrip(b"\r\n")) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield number, None
        else:
            yield number, raw.rstrip(b"\r\n")


def _parse(raw: bytes | None, number: int, problems: Problems) -> dict[str, Any] | None:
    """The JSON object on a line; ``None`` for a blank line, and for a broken one after noting it."""
    if raw is None:
        problems.add(number, f"is longer than {MAX_LINE_BYTES} bytes; split the document into several rows")
        return None
    if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{problems.path}: is UTF-16; save it as UTF-8")
    if not raw.strip():
        return None
    try:
        value = _decode(raw)
    except _BrokenLineError as error:
        problems.add(number, str(error))
        return None
    if not isinstance(value, dict):
        problems.add(number, f"is {shown(value)}; every line must be one JSON object, in braces")
        return None
    return value


class _BrokenLineError(Exception):
    """Why a line is no JSON value. Kept apart from ``ValueError``, which the JSON parser itself raises."""


def _decode(raw: bytes) -> Any:
    if b"\0" in raw:
        raise _BrokenLineError(f"NUL byte at byte {raw.index(0) + 1}; save the file as plain UTF-8 text")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise _BrokenLineError(
            f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _BrokenLineError(f"column {error.colno}: broken JSON: {error.msg}; mend the line") from None
    except RecursionError:
        raise _BrokenLineError("nested too deeply; a row holds texts and one list of small objects") from None
    except ValueError as error:  # an integer beyond Python's limit on digits
        raise _BrokenLineError(f"broken JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise _BrokenLineError(f"{name} is not JSON; remove it or write a string")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _BrokenLineError(f"key {shown(repeated)} is given twice; delete one of the two")
    return value
