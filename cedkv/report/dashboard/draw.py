"""Panels drawn: from a panel's specification and the runs looked at to tiles, figures and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cedkv.report.dashboard import charts, points, study, tables
from cedkv.report.dashboard.drawn import Drawn, Tile
from cedkv.report.dashboard.spec import Number, Page, Panel
from cedkv.report.dashboard.view import RunView, View, limit_label
from cedkv.report.tables import shown

PANELS: Final[dict[str, Callable[[Any, View], Drawn]]] = {
    "line": charts.line,
    "area": charts.area,
    "bar": charts.bar,
    "scatter": points.scatter,
    "tail": points.tail,
    "heatmap": points.heatmap,
    "runs": points.runs,
    "parallel": study.parallel,
    "trials": study.trials,
    "table": tables.table,
}


def draw_page(page: Page, view: View) -> list[Drawn]:
    """Every panel of a page."""
    return [draw(panel, view) for panel in page.panels]


def draw(panel: Panel, view: View) -> Drawn:
    """One panel."""
    if not view.runs and not (panel.kind in ("runs", "table") and getattr(panel, "rows", "runs") == "runs"):  # type: ignore[attr-defined]
        return Drawn(panel, empty="No run is chosen: choose one above.")
    if isinstance(panel, Number):
        return Drawn(panel, tiles=tuple(_tile(panel, run) for run in view.runs))
    return PANELS[panel.kind](panel, view)  # type: ignore[attr-defined]


def _tile(panel: Number, run: RunView) -> Tile:
    value = run.last(panel.metric)
    if value is None:
        return Tile(run.label, "—", f"no {panel.metric} in the log of this run")
    text = f"{shown(value)} {panel.unit}".strip()
    at = None if panel.limit is None else run.limit(panel.limit)
    if panel.limit is None or at is None:
        return Tile(run.label, text, "")
    margin = at - value if panel.better == "lower" else value - at
    sign = "≤" if panel.better == "lower" else "≥"
    word = "within" if margin >= 0 else "beyond"
    return Tile(
        run.label,
        text,
        f"{word} the limit: {sign} {limit_label(panel.limit, at)}, margin {margin:+.4g}",
        "good" if margin >= 0 else "bad",
    )
