"""Artifacts of a run, parsed strictly: a table that is not exactly what this schema says is no table.

Every function raises ``ValueError`` with the line and the reason; the reader turns it into one of a record's problems.

A table is read in one of two ways that give the same rows. `_canonical` takes the lines that the writer writes: keys
sorted, no blanks, nothing beyond them. One regular expression per row type states such a line completely, so what
matches is JSON with exactly the fields, each once. Everything else takes `_strict`, line by line, and is refused there
if it has to be.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import cache
from itertools import chain
from typing import Any, Final, TypeVar

from cedkv.config import yaml12

Row = TypeVar("Row")

_SHOWN: Final = 60

_PATTERNS: Final = {
    "str": r'"([^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"',
    "int": r"(-?(?:0|[1-9][0-9]{0,17}))",
    "float": r"((?!-0[,}])-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|null)",
    "bool": r"(true|false)",
}
"""The values of each kind as JSON writes them. Left to the strict way: integers of more digits, which Python may refuse,
and the integer -0 in a float field, which has no sign there."""


def parse_rows(text: str, row_type: type[Row]) -> tuple[Row, ...]:
    """JSON lines as instances of the dataclass ``row_type``: exactly its fields, each of its type.

    ``null`` in a float field is NaN, as the writer meant it; NaN and infinities written out are refused.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(row_type)}  # type: ignore[arg-type]
    columns = _canonical(text, tuple(kinds.items()))
    return tuple(map(row_type, *columns)) if columns is not None else _strict(text, row_type, kinds)


def parse_mapping(text: str) -> dict[str, Any]:
    """A JSON object. Refuses duplicate keys and numbers that are not finite."""
    return _mapping(_load(text))


def parse_list(text: str) -> list[Any]:
    """A JSON list, as strictly as a mapping."""
    value = _load(text)
    if not isinstance(value, list):
        raise ValueError(f"holds {_shown(value)} where a list belongs")  # noqa: TRY004 (the file's fault)
    return value


def parse_objects(text: str) -> list[dict[str, Any]]:
    """Objects of any keys, as JSON Lines or as one JSON list."""
    if text.lstrip().startswith("["):
        return [_mapping(row) for row in parse_list(text)]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            try:
                found.append(_mapping(_load(line)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return found


def parse_config(text: str) -> dict[str, Any]:
    """A logged configuration: YAML 1.2 without tags, so that ``on`` and ``off`` stay words."""
    return _mapping(yaml12.parse(text, "YAML"))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"holds {_shown(value)} where a mapping belongs")  # noqa: TRY004 (the file's fault)
    return value


def _canonical(text: str, kinds: tuple[tuple[str, str], ...]) -> list[list[Any]] | None:
    """The columns of a table in the order of ``kinds``; ``None`` unless every line is as the writer writes it."""
    pieces = _line(kinds).split(text if text.endswith("\n") else text + "\n")
    width = 1 + len(kinds)  # what no line matches, then the values of the line that follows
    if any(pieces[::width]):
        return None
    names = sorted(name for name, _ in kinds)
    columns = [_column(pieces[1 + names.index(name) :: width], kind) for name, kind in kinds]
    numbers = [column for column, (_, kind) in zip(columns, kinds, strict=True) if kind == "float"]
    return None if any(map(math.isinf, chain(*numbers))) else columns  # 1e999 is refused with its line


@cache
def _line(kinds: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    fields = ",".join(f'"{re.escape(name)}":{_PATTERNS[kind]}' for name, kind in sorted(kinds))
    return re.compile(rf"\{{{fields}\}}\n")


def _column(values: list[str], kind: str) -> list[Any]:
    """The values that the texts of one field stand for, all of `_PATTERNS`."""
    if kind == "str":
        if "\\" not in "".join(values):
            return values
        return [json.loads(f'"{value}"') if "\\" in value else value for value in values]
    if kind == "int":
        return list(map(int, values))
    if kind == "bool":
        return [value == "true" for value in values]
    if "null" not in values:
        return list(map(float, values))
    return [math.nan if value == "null" else float(value) for value in values]


def _strict(text: str, row_type: type[Row], kinds: dict[str, str]) -> tuple[Row, ...]:
    # Not splitlines(): a prompt may hold U+2028 and its kin, which JSON keeps as they are.
    lines = text.removesuffix("\n").split("\n") if text else []
    return tuple(row_type(**_fields(line, number, kinds)) for number, line in enumerate(lines, start=1))


def _fields(line: str, number: int, kinds: dict[str, str]) -> dict[str, Any]:
    try:
        row = _mapping(_load(line))
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if row.keys() != kinds.keys():
        missing, unknown = sorted(kinds.keys() - row.keys()), sorted(row.keys() - kinds.keys())
        raise ValueError(f"line {number}: fields missing {missing}, unknown {unknown}")
    return {name: _value(row[name], kind, f"line {number}, {name}") for name, kind in kinds.items()}


def _value(value: Any, kind: str, where: str) -> Any:
    if kind == "float" and (value is None or type(value) in (int, float)):
        return math.nan if value is None else _as_float(value, where)
    if type(value).__name__ != kind:  # exact: True is no int here
        raise ValueError(f"{where}: {_shown(value)} is not {kind}")
    return value


def _as_float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        raise ValueError(f"{where}: {_shown(value)} is not a finite number") from None


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply to be one of this project's files") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {sorted(found)[:5]}")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON; what is not finite is written as null")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:_SHOWN]} is not a finite number")
    return value


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.{_SHOWN}}"
