"""A measurement as Markdown for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cedkv.bench import machine
from cedkv.bench.rows import Agreement, Row, Section
from cedkv.report.tables import jsonable, markdown_table

SUMMARY = (
    "stress_vs_hf",
    "stress_vs_peft_cartridge",
    "step_vs_peft_cartridge",
    "stress_over_floor",
    "tracking_share",
)
"""Keys that a summary always has; null where a section did not run."""


def summary(sections: Sequence[Section]) -> dict[str, float | None]:
    """The numbers of all sections, the fixed ones first."""
    found: dict[str, float | None] = dict.fromkeys(SUMMARY)
    for section in sections:
        found |= section.summary
    return found


def to_json(facts: Mapping[str, Any], options: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Facts, options, every row with every repetition, and the summary."""
    content = {
        "schema": 1,
        "machine": dict(facts),
        "options": dict(options),
        "sections": [
            {"name": section.name, "title": section.title, "notes": list(section.notes)}
            for section in sections
        ],
        "rows": [_as_dict(row) for section in sections for row in section.rows],
        "summary": summary(sections),
    }
    return json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _as_dict(row: Row) -> dict[str, Any]:
    low, high = row.value.quartiles
    found: dict[str, Any] = {
        "section": row.section,
        "name": row.name,
        "computed": row.computed,
        "unit": row.unit,
        "median": row.value.median,
        "quartiles": [low, high],
        "values": list(row.value.values),
        "agrees": row.agrees,
        "agreement": None,
    }
    if row.agreement is not None:
        checked = row.agreement
        found["agreement"] = {
            "against": checked.against,
            "largest_difference": checked.largest,
            "tolerance": checked.tolerance,
        }
    return found | dict(row.extra)


def to_markdown(
    facts: dict[str, str | int | None], model: str, sections: Sequence[Section], figure: str | None
) -> str:
    """One table per section; medians with quartiles."""
    lines = ["# cedkv bench speed", "", f"Model {model}. {machine.line(facts)}.", ""]
    lines += [f"![pairs per second, and how time and memory grow]({figure})", ""] if figure else []
    for section in sections:
        lines += [f"## {section.title}", "", *_table(section), ""]
        lines += [*(f"- {note}" for note in section.notes), ""]
    lines += ["## Summary", "", "| | |", "| --- | --- |"]
    for name, value in summary(sections).items():
        lines.append(f"| `{name}` | {'not measured' if value is None else number(value)} |")
    return "\n".join(lines) + "\n"


def _table(section: Section) -> list[str]:
    used = {name for row in section.rows for name in row.extra}
    columns = [name for name in _SHOWN if name in used]
    return markdown_table(
        ["", "median", "quartiles", "unit", *map(_SHOWN.__getitem__, columns), "computed", "agrees"],
        [_cells(row, columns) for row in section.rows],
    )


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    low, high = row.value.quartiles
    spread = "" if len(row.value.values) == 1 else f"{number(low)} to {number(high)}"
    extra = [number(row.extra[name]) if name in row.extra else "" for name in columns]
    return [row.name, number(row.value.median), spread, row.unit, *extra, row.computed, _said(row.agreement)]


_SHOWN = {
    "gflop_per_s": "GFLOP/s",
    "peak_mib": "peak MiB",
    "trunk_ms": "trunk ms",
    "standard_error": "standard error",
}
"""Extra numbers that have a column, and its head; the others are in the JSON."""


def _said(checked: Agreement | None) -> str:
    if checked is None:
        return ""
    verdict, sign = ("yes", "≤") if checked.holds else ("**NO**", ">")
    return f"{verdict}: {checked.largest:.1e} {sign} {checked.tolerance:.0e}, {checked.against}"


def number(value: float) -> str:
    """Three digits that mean something, without an exponent where people read numbers.

    >>> number(0.01234), number(3.14159), number(1234.5), number(2e-6)
    ('0.0123', '3.14', '1,234', '2e-06')
    """
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
