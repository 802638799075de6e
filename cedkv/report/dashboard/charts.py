"""Charts of metrics: lines and stacked areas over steps, stacked bars of last values."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from cedkv.report import escape
from cedkv.report.dashboard import style
from cedkv.report.dashboard.drawn import Drawn
from cedkv.report.dashboard.spec import Area, Bar, Line
from cedkv.report.dashboard.view import View, short_key
from cedkv.tracking.record import Series

MOST_POINTS: Final = 1200
"""Points of a line. Longer ones keep the lowest and the highest value of each stretch, so that no peak is lost."""


def line(panel: Line, view: View) -> Drawn:
    """A line for every run and metric: one run, a colour for each metric; several, a colour for each run."""
    found = [
        (run_place, run, name)
        for run_place, run in enumerate(view.runs)
        for pattern in panel.metrics
        for name in run.named(pattern)
    ]
    if not found:
        return _nothing(panel, panel.metrics)
    names = list(dict.fromkeys(name for _, _, name in found))
    several = len({run_place for run_place, _, _ in found}) > 1
    made = style.figure(right=bool(panel.right))
    for run_place, run, name in found:
        metric_place = names.index(name)
        to_the_right = _one_of(name, panel.right)
        made.add_trace(
            go.Scatter(
                **_points(run.history[name]),
                name=escape.markup(f"{name} · {run.label}" if several else name, 120),
                mode="lines+markers" if _one_of(name, panel.marks) else "lines",
                marker={"size": 5},
                line={
                    "color": style.colour(run_place if several else metric_place),
                    "dash": style.DASHES[metric_place % len(style.DASHES)] if several else "solid",
                    "width": 2,
                    "shape": "hv" if _one_of(name, panel.stairs) else "linear",
                },
            ),
            **({"row": 1, "col": 1, "secondary_y": to_the_right} if panel.right else {}),
        )
    style.draw_limits(made, found[0][1], panel.limits, log=panel.log)
    made.update_xaxes(title_text="step")
    left: dict[str, Any] = style.LOG if panel.log else {}
    if panel.right:
        made.update_yaxes(title_text=panel.unit, secondary_y=False, **left)
        made.update_yaxes(
            title_text=panel.right_unit, secondary_y=True, showgrid=False, tickmode="auto", nticks=6
        )
    else:
        made.update_yaxes(title_text=panel.unit, **left)
    return Drawn(panel, figure=made)


def area(panel: Area, view: View) -> Drawn:
    """A chart for each run, its metrics stacked from the bottom up in the order given."""
    runs = [run for run in view.runs if any(run.named(pattern) for pattern in panel.metrics)]
    if not runs:
        return _nothing(panel, panel.metrics)
    made, chosen, about = style.facets(runs)
    for column, run in enumerate(chosen, start=1):
        over = [name for pattern in panel.over for name in run.named(pattern)]
        stacked = [name for pattern in panel.metrics for name in run.named(pattern) if name not in over]
        shades = [
            style.OF_TYPE.get(name.rpartition("/")[2], style.colour(n)) for n, name in enumerate(stacked)
        ]
        looks: list[tuple[str, dict[str, Any]]] = [
            (name, {"stackgroup": f"run {column}", "line": {"color": shade, "width": 0.5}})
            for name, shade in zip(stacked, shades, strict=True)
        ]
        looks += [(name, {"line": {"color": "#8c8c8c", "width": 2, "dash": "dot"}}) for name in over]
        for name, look in looks:
            made.add_trace(
                go.Scatter(
                    **_points(run.history[name]),
                    **look,
                    name=escape.markup(name.rpartition("/")[2], 60),
                    legendgroup=name,
                    showlegend=column == 1,
                    mode="lines",
                ),
                row=1,
                col=column,
            )
        style.draw_limits(made, run, panel.limits, column=column)
    made.update_xaxes(title_text="step")
    made.update_yaxes(title_text=panel.unit, row=1, col=1)
    return Drawn(panel, figure=made, about=about)


def bar(panel: Bar, view: View) -> Drawn:
    """A bar for each run: the last values of its metrics."""
    names = list(
        dict.fromkeys(name for run in view.runs for pattern in panel.metrics for name in run.named(pattern))
    )
    if not names:
        return _nothing(panel, panel.metrics)
    labels = [escape.markup(run.label, 48) for run in reversed(view.runs)]
    height = 150 + 44 * len(labels)
    made = style.figure(height=height)
    for place, name in enumerate(names):
        made.add_trace(
            go.Bar(
                y=labels,
                x=[run.last(name) for run in reversed(view.runs)],
                name=escape.markup(short_key(name.rpartition("/")[2]).removeprefix("seconds_"), 60),
                orientation="h",
                marker={
                    "color": style.colour(place),
                    "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"},
                },
            )
        )
    # The legend's place is a share of the plot's height, which is small here: below the title of the axis.
    made.update_layout(barmode="stack", legend={"y": -66 / (height - 56)})
    made.update_xaxes(title_text=panel.unit)
    return Drawn(panel, figure=made)


def _nothing(panel: Line | Area | Bar, metrics: Sequence[str]) -> Drawn:
    return Drawn(
        panel,
        empty=f"No run looked at has logged {', '.join(metrics)}. Phase 2 trains nothing and logs no curves; a run that has "
        "just started logs them with its first step.",
    )


def _one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _points(series: Series) -> dict[str, Any]:
    """A series by step, at most `MOST_POINTS` of it; of several values at one step the last one logged."""
    held = series.points()
    steps, values = np.asarray(held[0]), np.asarray(held[1], dtype=float)
    if len(steps) > 1 and (np.diff(steps) <= 0).any():
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        last = np.append(np.diff(steps) > 0, True)
        steps, values = steps[last], values[last]
    kept = _kept(values)
    return {"x": steps[kept], "y": values[kept]}


def _kept(values: np.ndarray) -> np.ndarray:
    """The places of the points that are drawn: all, or both ends and the extremes of each stretch."""
    count = len(values)
    if count <= MOST_POINTS:
        return np.arange(count)
    width = -(-count // (MOST_POINTS // 2))
    stretches = -(-count // width)
    starts = np.arange(stretches) * width
    found = [np.array([0, count - 1])]
    for filler, pick in ((np.inf, np.argmin), (-np.inf, np.argmax)):
        padded = np.full(stretches * width, filler)
        padded[:count] = np.where(np.isfinite(values), values, filler)
        found.append(starts + pick(padded.reshape(stretches, width), axis=1))
    return np.unique(np.concatenate(found))
