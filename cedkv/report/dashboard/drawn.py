"""What a panel comes to, before it is HTML or an app: tiles, a figure, tables, or why there is nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cedkv.report import escape
from cedkv.report.dashboard.spec import Panel

Tone = Literal["", "good", "bad", "warn"]
"""How a value is shown; never by colour alone: its text says it, too."""

TONES: dict[str, Tone] = {
    "pass": "good",
    "yes": "good",
    "FINISHED": "good",
    "fail": "bad",
    "no": "bad",
    "FAILED": "bad",
    "KILLED": "bad",
    "error": "bad",
    "inconclusive": "warn",
    "budget spent": "warn",
    "warning": "warn",
    "RUNNING": "warn",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table. `run`: the id of the run it leads to."""

    text: str
    tone: Tone = ""
    number: bool = False
    run: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; `about` says whose it is and what was left out."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    about: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers, as far as it holds anything."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        return tuple(
            any(cell.number for cell in column) and all(cell.number or not cell.text for cell in column)
            for column in columns
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One large value, of which run, and a line below it."""

    run: str
    value: str
    detail: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One panel. `empty` says why nothing is shown, and what to do about it."""

    panel: Panel
    figure: Any = None
    """A plotly figure."""
    tiles: tuple[Tile, ...] = ()
    grids: tuple[Grid, ...] = ()
    empty: str = ""
    about: str = ""
    """What was left out."""


def cell(value: Any) -> Cell:
    """A value from the log as a cell: numbers to six digits, text on one line with nothing hidden in it."""
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(f"{value:.6g}", number=True)
    if value is None:
        return Cell("")
    text = escape.plain(str(value), 400)
    return Cell(text, TONES.get(text, ""))
