"""Rows as text: what every report shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cedkv.report import escape

_SHOWN = 40  # characters of one cell


def jsonable(value: Any) -> Any:
    """``value`` with tuples as lists and numbers that are not finite as None, so that it is valid JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def shown(value: float | str | None) -> str:
    """A value for people: six digits, text on one line and short, ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        is_hash = len(value) == 64 and all(char in "0123456789abcdef" for char in value)
        return value[:12] if is_hash else escape.plain(value, _SHOWN)
    return f"{value:.6g}"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Rows as lines of aligned columns; ``right`` says which columns lean right."""
    widths = [max(escape.width(row[column]) for row in rows) for column in range(len(right))]
    return ["  ".join(map(_padded, row, widths, right)).rstrip() for row in rows]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table. Cells come escaped."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _padded(text: str, wanted: int, right: bool) -> str:
    space = " " * (wanted - escape.width(text))
    return space + text if right else text + space
