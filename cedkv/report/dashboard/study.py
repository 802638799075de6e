"""Charts of a study of settings: its trials across what was searched, and how λ moved in the best and the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import plotly.graph_objects as go

from cedkv.report import escape
from cedkv.report.dashboard import charts, style
from cedkv.report.dashboard.drawn import Drawn
from cedkv.report.dashboard.spec import Line, Parallel, Trials
from cedkv.report.dashboard.view import Rows, RunView, View
from cedkv.report.traces import finite

WIDE = 50.0
"""Factor between the largest and the smallest value from which on an axis is logarithmic."""


def parallel(panel: Parallel, view: View) -> Drawn:
    """A line for every row that has a number to be coloured by; axes of texts show them where they stand."""
    found = _study(view, panel.rows)
    if found is None:
        return _nothing(panel, panel.rows)
    rows = [row for row in found[1] if finite(row.get(panel.by)) is not None]
    names = dict.fromkeys(key for row in rows for key in row)
    keys = [key for pattern in panel.keys for key in names if fnmatchcase(key, pattern)]
    if not rows or not keys:
        return Drawn(panel, empty=f"No trial of {found[0].label} has ended with a score yet.")
    made = style.figure(height=420)
    made.add_trace(
        go.Parcoords(
            line={
                "color": [finite(row[panel.by]) for row in rows],
                "colorscale": "Cividis",
                "reversescale": True,
                "showscale": True,
                "colorbar": {"title": escape.markup(panel.by, 40)},
            },
            dimensions=[_axis(key, [row.get(key) for row in rows]) for key in keys],
            labelangle=-12,
        )
    )
    made.update_layout(margin={"l": 70, "r": 30, "t": 70, "b": 24})
    left = len(found[1]) - len(rows)
    return Drawn(panel, figure=made, about=f"Without {left} trials that have no {panel.by}." if left else "")


def _axis(key: str, values: Sequence[Any]) -> dict[str, Any]:
    label = escape.markup(key.rpartition(".")[2] if key.startswith("phase3.") else key, 40)
    numbers = [finite(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) < len(values) and any(isinstance(value, str) for value in values):
        texts = sorted({str(value) for value in values})
        return {
            "label": label,
            "values": [texts.index(str(value)) for value in values],
            "tickvals": list(range(len(texts))),
            "ticktext": [escape.markup(text, 30) for text in texts],
        }
    if known and min(known) > 0 and max(known) >= WIDE * min(known):
        powers = range(math.floor(math.log10(min(known))), math.ceil(math.log10(max(known))) + 1)
        return {
            "label": f"{label} (log)",
            "values": [math.nan if number is None else math.log10(number) for number in numbers],
            "tickvals": list(powers),
            "ticktext": [f"{10.0**power:g}" for power in powers],
        }
    return {"label": label, "values": [math.nan if number is None else number for number in numbers]}


def trials(panel: Trials, view: View) -> Drawn:
    """A line for each metric of each of these trials."""
    found = _study(view, panel.rows)
    if found is None:
        return _nothing(panel, panel.rows)
    ranked = sorted(
        (row for row in found[1] if finite(row.get("rank")) is not None and _run_of(row)),
        key=lambda row: finite(row["rank"]) or 0.0,
    )
    if not ranked:
        return Drawn(panel, empty=f"No trial of {found[0].label} has ended with a score yet.")
    best = ranked[: panel.best]
    chosen = [(row, "best") for row in best]
    chosen += [(row, "worst") for row in ranked[len(best) :][-panel.worst :]]
    told = {_run_of(row): f"{word}, trial {row.get('trial')}" for row, word in chosen}
    runs = [
        replace(run, record=replace(run.record, name=told[run.record.run_id]))
        for run in view.also(list(told))
    ]
    drawn = charts.line(
        Line(
            kind="line",
            title=panel.title,
            metrics=panel.metrics,
            stairs=panel.stairs,
            limits=panel.limits,
            log=panel.log,
            unit=panel.unit,
        ),
        replace(view, runs=runs),
    )
    return replace(drawn, panel=panel)


def _run_of(row: Mapping[str, Any]) -> str:
    """The first run of a trial."""
    runs = row.get("runs")
    return str(runs[0]) if isinstance(runs, list) and runs else ""


def _study(view: View, artifact: str) -> tuple[RunView, Rows] | None:
    return next(((run, rows) for run in view.runs if (rows := run.rows(artifact))), None)


def _nothing(panel: Parallel | Trials, artifact: str) -> Drawn:
    return Drawn(panel, empty=f"No run looked at holds {artifact}: choose the run of a study (`cedkv tune`).")
