"""How figures look: colours that every eye tells apart, on light and dark ground, and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cedkv import ledger
from cedkv.report import escape
from cedkv.report.dashboard.spec import Limit
from cedkv.report.dashboard.view import RunView, limit_label

# Okabe and Ito's palette without black and yellow, which one of the two grounds swallows.
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8c8c8c")
DASHES: Final = ("solid", "dot", "dash", "longdash", "dashdot")
OF_TYPE: Final = dict(
    zip(ledger.ATOM_TYPES, ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#8c8c8c", "#D55E00"), strict=True)
)
LIMIT: Final = "#D55E00"
LOG: Final = {"type": "log", "exponentformat": "power", "rangemode": "normal"}
MOST_RUNS: Final = 3
"""Charts beside each other where every run has one of its own."""

_GREY: Final = "rgba(128,128,128,0.25)"
_CLEAR: Final = "rgba(0,0,0,0)"


def colour(place: int) -> str:
    """The colour of the run or metric at a place."""
    return COLOURS[place % len(COLOURS)]


def figure(
    columns: int = 1, titles: Sequence[str] = (), *, right: bool = False, height: int = 340
) -> go.Figure:
    """An empty figure with charts beside each other. The page's style sheet gives text and grounds their colours."""
    made = make_subplots(
        rows=1,
        cols=columns,
        shared_yaxes=not right,
        horizontal_spacing=0.04,
        subplot_titles=[escape.markup(title, 40) for title in titles] or None,
        specs=[[{"secondary_y": right}] * columns],
    )
    made.update_layout(
        height=height,
        margin={"l": 56, "r": 16, "t": 30 if titles else 12, "b": 44},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "bgcolor": _CLEAR},
        colorway=list(COLOURS),
    )
    made.update_xaxes(gridcolor=_GREY, zeroline=False, automargin=True)
    made.update_yaxes(gridcolor=_GREY, zeroline=False, automargin=True, rangemode="tozero")
    return made


def facets(runs: Sequence[RunView], *, height: int = 340) -> tuple[go.Figure, list[RunView], str]:
    """A figure with a chart for each of the first runs, those runs, and what was left out."""
    chosen = list(runs[:MOST_RUNS])
    titles = [run.label for run in chosen] if len(chosen) > 1 else []
    about = f"The first {len(chosen)} of {len(runs)} runs." if len(chosen) < len(runs) else ""
    return figure(len(chosen), titles, height=height), chosen, about


def draw_limits(
    made: go.Figure,
    run: RunView,
    limits: Sequence[Limit],
    *,
    column: int = 1,
    upright: bool = False,
    log: bool = False,
) -> None:
    """Threshold lines of one run, across (or upright, on x); ``log`` where that axis is logarithmic."""
    axis = "" if column == 1 else str(column)
    for limit in limits:
        at = run.limit(limit)
        if at is None or (log and at <= 0):
            continue
        line = {"color": LIMIT, "dash": "dash", "width": 1.5}
        # A shape on a logarithmic axis is placed by its value, an annotation by its logarithm.
        place = math.log10(at) if log else at
        label = {"text": escape.markup(limit_label(limit, at), 60), "showarrow": False, "font": {"size": 11}}
        if upright:
            made.add_shape(
                type="line", x0=at, x1=at, y0=0, y1=1, xref=f"x{axis}", yref=f"y{axis} domain", line=line
            )
            made.add_annotation(
                x=place, y=1, xref=f"x{axis}", yref=f"y{axis} domain", xanchor="left", yanchor="top", **label
            )
        else:
            made.add_shape(
                type="line", x0=0, x1=1, y0=at, y1=at, xref=f"x{axis} domain", yref=f"y{axis}", line=line
            )
            made.add_annotation(
                x=0,
                y=place,
                xref=f"x{axis} domain",
                yref=f"y{axis}",
                xanchor="left",
                yanchor="bottom",
                **label,
            )


def slide(made: go.Figure, frames: Sequence[tuple[Any, list[int]]], what: str) -> None:
    """A slider that shows the traces of one frame at a time; the last one first. A trace in no frame is always shown."""
    framed = {trace for _, traces in frames for trace in traces}
    steps = [
        {
            "method": "restyle",
            "label": str(name),
            "args": [
                {"visible": [place not in framed or place in traces for place in range(len(made.data))]}
            ],
        }
        for name, traces in frames
    ]
    for place in framed - set(frames[-1][1]):
        made.data[place].visible = False
    made.update_layout(
        height=made.layout.height + 60,
        sliders=[
            {
                "active": len(steps) - 1,
                "steps": steps,
                "currentvalue": {"prefix": f"{what} "},
                "pad": {"t": 44},
                "len": 1.0,
            }
        ],
    )
