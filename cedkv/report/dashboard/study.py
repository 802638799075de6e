"""Charts of a study of settings: its trials across what was searched, and how λ moved in the best and the worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from cedkv.report import escape
from cedkv.report.dashboard import charts, style
from cedkv.report.dashboard.drawn import Drawn
from cedkv.report.dashboard.spec import Line, Parallel, Trials
from cedkv.report.dashboard.view import Rows, RunView, View, short_key
from cedkv.report.traces import finite

WIDE = 50.0
"""Factor between the largest and the smallest value from which on an axis is logarithmic."""


def parallel(panel: Parallel, view: View) -> Drawn:
    """A line for every row that has a number to be coloured by; each axis runs from its smallest value to its largest."""
    found = _study(view, panel.rows)
    if found is None:
        return _nothing(panel, panel.rows)
    # The best ones are drawn last, over the others.
    rows = sorted(
        (row for row in found[1] if finite(row.get(panel.by)) is not None),
        key=lambda row: -(finite(row[panel.by]) or 0.0),
    )
    names = sorted({key for row in rows for key in row})
    axes = [
        _axis(key, [row.get(key) for row in rows])
        for pattern in panel.keys
        for key in names
        if fnmatchcase(key, pattern)
    ]
    if not axes:
        return Drawn(panel, empty=f"No trial of {found[0].label} has ended with a score yet.")
    made = style.figure(height=440)
    shades = sample_colorscale("Cividis", [place / max(1, len(rows) - 1) for place in range(len(rows))])
    for place, (row, shade) in enumerate(zip(rows, reversed(shades), strict=True)):
        made.add_trace(
            go.Scatter(
                x=list(range(len(axes))),
                y=[axis.places[place] for axis in axes],
                mode="lines+markers",
                line={"color": shade, "width": 1.5},
                marker={"size": 5},
                opacity=0.9,
                showlegend=False,
                text=[escape.markup(f"{axis.label}: {axis.texts[place]}", 80) for axis in axes],
                hovertemplate=f"{escape.markup(panel.by, 40)} {row[panel.by]:g}<br>%{{text}}<extra></extra>",
            )
        )
    for at, axis in enumerate(axes):
        for height, text in ((-0.06, axis.low), (1.06, axis.high)):
            made.add_annotation(x=at, y=height, text=escape.markup(text, 30), showarrow=False)
    labels = [escape.markup(axis.label, 40) for axis in axes]
    made.update_xaxes(tickvals=list(range(len(axes))), ticktext=labels, gridcolor="rgba(128,128,128,0.6)")
    made.update_yaxes(visible=False, range=[-0.12, 1.12])
    left = len(found[1]) - len(rows)
    return Drawn(panel, figure=made, about=f"Without {left} trials that have no {panel.by}." if left else "")


@dataclass(frozen=True, slots=True)
class _Axis:
    """An upright axis: where on it (0 to 1) each row lies, what stands there, and at its ends."""

    label: str
    places: list[float | None]
    texts: list[str]
    low: str
    high: str


def _axis(key: str, values: Sequence[Any]) -> _Axis:
    label = short_key(key)
    numbers = [finite(value) for value in values]
    if any(number is None and value is not None for number, value in zip(numbers, values, strict=True)):
        texts = [str(value) for value in values]
        names = sorted(set(texts))
        spread = max(1, len(names) - 1)
        return _Axis(label, [names.index(text) / spread for text in texts], texts, names[0], names[-1])
    known = [number for number in numbers if number is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    wide = low > 0 and high >= WIDE * low
    scale: Callable[[float], float] = math.log if wide else float
    span = scale(high) - scale(low) if high > low else 1.0
    places = [None if number is None else (scale(number) - scale(low)) / span for number in numbers]
    texts = ["" if number is None else f"{number:.4g}" for number in numbers]
    return _Axis(f"{label} (log)" if wide else label, places, texts, f"{low:.3g}", f"{high:.3g}")


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
