"""Charts of rows and of runs: scatters, tails, heat maps, and runs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from cedkv import ledger
from cedkv.core import stats
from cedkv.report import escape
from cedkv.report.dashboard import style
from cedkv.report.dashboard.drawn import Drawn
from cedkv.report.dashboard.spec import Heatmap, Runs, Scatter, Tail
from cedkv.report.dashboard.view import Rows, RunView, View
from cedkv.report.traces import finite
from cedkv.tracking.record import RunRecord


def scatter(panel: Scatter, view: View) -> Drawn:
    """A chart for each run; a slider goes through the frames."""
    with_rows = _with_rows(view.runs, panel.rows)
    if not with_rows:
        return _nothing(panel, panel.rows)
    made, chosen, about = style.facets([run for run, _ in with_rows], height=380)
    frames: dict[float | str, list[int]] = {}
    for column, run in enumerate(chosen, start=1):
        for (frame, group), rows in _grouped(with_rows[column - 1][1], panel).items():
            frames.setdefault(frame, []).append(len(made.data))
            made.add_trace(_dots(panel, rows, group, first=column == 1), row=1, col=column)
        style.draw_limits(made, run, panel.limits, column=column, log="y" in panel.log)
    _logarithmic(made, panel.log)
    made.update_xaxes(title_text=escape.markup(panel.x))
    made.update_yaxes(title_text=escape.markup(f"{panel.y} {panel.unit}".strip()), row=1, col=1)
    if panel.frame is not None and len(frames) > 1:
        style.slide(made, sorted(frames.items(), key=_by_frame), panel.frame)
    return Drawn(panel, figure=made, about=about)


def _grouped(rows: Rows, panel: Scatter) -> dict[tuple[float | str, str], list[Mapping[str, Any]]]:
    """Rows that can be drawn, by frame and group."""
    found: dict[tuple[float | str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        x, y = finite(row.get(panel.x)), finite(row.get(panel.y))
        if x is None or y is None or ("x" in panel.log and x <= 0) or ("y" in panel.log and y <= 0):
            continue
        frame = _frame(row, panel.frame)
        group = str(row.get(panel.by, "")) if panel.by else ""
        found.setdefault((frame, group), []).append(row)
    return found


def _frame(row: Mapping[str, Any], key: str | None) -> float | str:
    """The frame a row belongs to: a number or text, whatever stands there."""
    value = None if key is None else row.get(key)
    number = finite(value)
    return str(value) if number is None else int(number) if number.is_integer() else number


def _by_frame(item: tuple[float | str, list[int]]) -> tuple[bool, float, str]:
    """Numbers first, by size; then texts."""
    frame = item[0]
    return (True, 0.0, frame) if isinstance(frame, str) else (False, frame, "")


def _dots(panel: Scatter, rows: Rows, group: str, *, first: bool) -> go.Scatter:
    return go.Scatter(
        x=[row[panel.x] for row in rows],
        y=[row[panel.y] for row in rows],
        mode="markers",
        name=escape.markup(group, 72),
        legendgroup=group,
        showlegend=first and bool(group),
        marker={"size": 5, "opacity": 0.6, **({} if group else {"color": style.colour(0)})},
    )


def tail(panel: Tail, view: View) -> Drawn:
    """The share of rows at or over each value. What the gates judge is where a curve crosses 1 %."""
    runs = list(view.runs)
    for run in view.runs if panel.baseline else ():
        found = view.baseline(run)
        if found is not None and all(found.record.run_id != other.record.run_id for other in runs):
            runs.append(found)
    with_rows = _with_rows(runs, panel.rows)
    if not with_rows:
        return _nothing(panel, panel.rows)
    made = style.figure(height=400)
    for place, (run, rows) in enumerate(with_rows):
        values = sorted(
            (v for v in (finite(row.get(panel.x)) for row in rows) if v is not None), reverse=True
        )
        shown = [(value, rank / len(values)) for rank, value in enumerate(values, start=1) if value > 0]
        phase = run.record.tags.get(ledger.TAG_PHASE)
        name = escape.markup(f"{run.label}{f', phase {phase}' if phase else ''}", 80)
        shade = style.colour(place)
        made.add_trace(
            go.Scatter(
                x=[value for value, _ in shown],
                y=[share for _, share in shown],
                name=name,
                mode="lines",
                line={"color": shade, "width": 2, "shape": "hv"},
            )
        )
        if panel.quantile is not None and values:
            _mark_quantile(made, panel, run, values, shade)
    style.draw_limits(made, runs[0], panel.limits, upright=True, log=True)
    made.update_xaxes(
        **style.LOG, title_text=escape.markup(f"{panel.x} ({panel.unit})" if panel.unit else panel.x)
    )
    made.update_yaxes(**style.LOG, title_text="share of prompts at or over it", tickformat="~p")
    return Drawn(panel, figure=made)


def _mark_quantile(made: go.Figure, panel: Tail, run: RunView, values: list[float], shade: str) -> None:
    assert panel.quantile is not None
    at = stats.order_statistic_quantile(values, panel.quantile)
    bound = None if panel.bound is None else run.last(panel.bound)
    share = sum(value >= at for value in values) / len(values)
    reach = [at] if bound is None else [at, bound]
    made.add_trace(
        go.Scatter(
            x=reach,
            y=[share] * len(reach),
            mode="lines+markers",
            marker={
                "color": shade,
                "size": [11, 8][: len(reach)],
                "symbol": ["diamond", "line-ns-open"][: len(reach)],
            },
            line={"color": shade, "width": 1, "dash": "dot"},
            name=escape.markup(
                f"p{100 * panel.quantile:g} {at:.4g}"
                + ("" if bound is None else f", 95 % bound {bound:.4g}"),
                60,
            ),
        )
    )


def heatmap(panel: Heatmap, view: View) -> Drawn:
    """A chart for each run: a row for each name, a column for each number of its list."""
    with_rows = _with_rows(view.runs, panel.rows)
    if not with_rows:
        return _nothing(panel, panel.rows)
    made, chosen, about = style.facets([run for run, _ in with_rows], height=420)
    frames: dict[float | str, list[int]] = {}
    for column, run in enumerate(chosen, start=1):
        by_frame: dict[float | str, list[Mapping[str, Any]]] = {}
        for row in with_rows[column - 1][1]:
            if isinstance(row.get(panel.values), list):
                by_frame.setdefault(_frame(row, panel.frame), []).append(row)
        top = None if panel.top is None else run.limit(panel.top)
        for frame, rows in by_frame.items():
            frames.setdefault(frame, []).append(len(made.data))
            made.add_trace(_shades(panel, rows, top, bar=column == len(chosen)), row=1, col=column)
    made.update_xaxes(title_text=escape.markup(panel.x_title))
    made.update_yaxes(autorange="reversed", type="category")
    if panel.frame is not None and len(frames) > 1:
        style.slide(made, sorted(frames.items(), key=_by_frame), panel.frame)
    return Drawn(panel, figure=made, about=about)


def _shades(panel: Heatmap, rows: Rows, top: float | None, *, bar: bool) -> go.Heatmap:
    values = [[finite(value) for value in row[panel.values]] for row in rows]
    return go.Heatmap(
        z=values,
        x=list(range(max(map(len, values), default=0))),
        y=[escape.markup(str(row.get(panel.y, "")), 40) for row in rows],
        colorscale="Cividis",
        zmin=0,
        zmax=top,
        showscale=bar,
        hovertemplate="%{y} · %{x}: %{z:.4g}<extra></extra>",
    )


def runs(panel: Runs, view: View) -> Drawn:
    """Every run of the experiment; those looked at are larger and named."""
    found = [
        (run, x, y) for run in view.listed for x, y in [_pair(run, panel)] if x is not None and y is not None
    ]
    if not found:
        return Drawn(
            panel,
            empty=f"No run of this experiment has logged {panel.x} and {panel.y}: train one, e.g. with "
            "`cedkv --config configs/smoke.yaml --phase 3`.",
        )
    made = style.figure(height=440)
    chosen = {run.record.run_id for run in view.runs}
    for place, phase in enumerate(sorted({_phase(run) for run, _, _ in found})):
        here = [(run, x, y) for run, x, y in found if _phase(run) == phase]
        made.add_trace(
            go.Scatter(
                x=[x for _, x, _ in here],
                y=[y for _, _, y in here],
                mode="markers",
                name=escape.markup(f"phase {phase}" if phase else "no phase", 40),
                marker={
                    "size": [13 if run.run_id in chosen else 8 for run, _, _ in here],
                    "symbol": ["diamond" if run.run_id in chosen else "circle" for run, _, _ in here],
                    "color": style.colour(place),
                    "opacity": 0.85,
                },
                text=[escape.markup(f"{run.name} ({run.run_id[:8]})", 120) for run, _, _ in here],
                hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
            )
        )
    if panel.pareto:
        front = pareto([(x, y) for _, x, y in found], panel.x_better == "lower", panel.y_better == "lower")
        made.add_trace(
            go.Scatter(
                x=[x for x, _ in front],
                y=[y for _, y in front],
                mode="lines",
                name="no run is better in both",
                line={"color": "#8c8c8c", "width": 1.5, "dash": "dot"},
            )
        )
    if view.runs:
        style.draw_limits(made, view.runs[0], panel.x_limits, upright=True, log="x" in panel.log)
        style.draw_limits(made, view.runs[0], panel.y_limits, log="y" in panel.log)
    made.update_yaxes(rangemode="normal", title_text=escape.markup(panel.y_unit or panel.y))
    made.update_xaxes(title_text=escape.markup(panel.x_unit or panel.x))
    _logarithmic(made, panel.log)
    return Drawn(panel, figure=made)


def pareto(points: Sequence[tuple[float, float]], x_low: bool, y_low: bool) -> list[tuple[float, float]]:
    """The points that no other one beats in one coordinate without losing in the other, by x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(
        set(points), key=lambda point: (point[0] if x_low else -point[0], point[1] if y_low else -point[1])
    ):
        if not front or (y < front[-1][1] if y_low else y > front[-1][1]):
            front.append((x, y))
    return front


def _logarithmic(made: go.Figure, axes: Sequence[str]) -> None:
    if "x" in axes:
        made.update_xaxes(**style.LOG)
    if "y" in axes:
        made.update_yaxes(**style.LOG)


def _pair(run: RunRecord, panel: Runs) -> tuple[float | None, float | None]:
    x, y = finite(run.metrics.get(panel.x)), finite(run.metrics.get(panel.y))
    if x is not None and "x" in panel.log and x <= 0:
        x = None
    return x, None if y is not None and "y" in panel.log and y <= 0 else y


def _phase(run: RunRecord) -> str:
    return run.tags.get(ledger.TAG_PHASE, "")


def _with_rows(runs: Sequence[RunView], artifact: str) -> list[tuple[RunView, Rows]]:
    """The runs that have rows in an artifact, with these."""
    found = [(run, run.rows(artifact)) for run in runs]
    return [(run, rows) for run, rows in found if rows]


def _nothing(panel: Scatter | Tail | Heatmap, artifact: str) -> Drawn:
    return Drawn(
        panel,
        empty=f"No run looked at has rows in {artifact}: a run logs it when it ends, and Phase 2 has fewer of them.",
    )
