"""Pages as dash shows them: drawn panels, tiles, tables and warnings as its components. React escapes every text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from cedkv.report import escape
from cedkv.report.dashboard.alerts import MAX_NOTE, Alert
from cedkv.report.dashboard.draw import draw_page
from cedkv.report.dashboard.drawn import Cell, Drawn, Grid, Tile, cell
from cedkv.report.dashboard.spec import Page
from cedkv.report.dashboard.view import View
from cedkv.tracking.names import check_run_id


def page_of(pages: Mapping[str, Page], slug: str, view: View) -> Any:
    """The page of an address over the runs looked at; which pages there are where it names none."""
    if slug not in pages:
        return html.P(f"There is no page {escape.plain(slug, 60)!r}: choose one above.", className="empty")
    page = pages[slug]
    panels = [_panel(f"{slug}-{place}", drawn) for place, drawn in enumerate(draw_page(page, view))]
    return [
        html.H2(escape.plain(page.page, 80)),
        html.P(escape.plain(page.about), className="quiet"),
        html.Div(panels, className="panels"),
    ]


def _panel(name: str, drawn: Drawn) -> html.Section:
    panel = drawn.panel
    head = [html.H3(escape.plain(panel.title)), html.P(escape.plain(panel.note), className="quiet")]
    about = [html.P(escape.plain(drawn.about), className="quiet")] if drawn.about else []
    return html.Section([*head, *about, *_body(name, drawn)], className=f"panel {panel.width}")


def _body(name: str, drawn: Drawn) -> list[Any]:
    if drawn.empty:
        return [html.P(escape.plain(drawn.empty), className="empty")]
    if drawn.tiles:
        return [html.Div([_tile(tile) for tile in drawn.tiles], className="tiles")]
    if drawn.figure is not None:
        # The same revision keeps zoom, hidden lines and the slider where the reader put them.
        figure = drawn.figure.update_layout(uirevision=name)
        return [
            dcc.Graph(
                id=name,
                figure=figure,
                config={"displaylogo": False},
                responsive=True,
                style={"height": figure.layout.height},
            )
        ]
    return [_grid(grid) for grid in drawn.grids]


def _tile(tile: Tile) -> html.Div:
    return html.Div(
        [
            html.Div(escape.plain(tile.run, 60), className="quiet"),
            html.Div(escape.plain(tile.value), className=f"value {tile.tone}"),
            html.Div(escape.plain(tile.detail), className="quiet"),
        ],
        className="tile",
    )


def _grid(grid: Grid) -> html.Div:
    head = [
        html.Th(escape.plain(name), scope="col", className="number" if number else "")
        for name, number in zip(grid.header, grid.numeric, strict=True)
    ]
    rows = [html.Tr([_cell(cell) for cell in row]) for row in grid.rows]
    about = [html.Caption(escape.plain(grid.about))] if grid.about else []
    return html.Div(html.Table([*about, html.Thead(html.Tr(head)), html.Tbody(rows)]), className="scroll")


def _cell(cell: Cell) -> html.Td:
    text = escape.plain(cell.text)
    inside = html.A(text, href=f"?runs={check_run_id(cell.run)}") if cell.run else text
    return html.Td(inside, className=f"{'number ' if cell.number else ''}{cell.tone}")


def warnings_page(alerts: Sequence[Alert]) -> list[Any]:
    """Every warning with what is behind it and a place for a note, those that nobody has taken note of first."""
    about = "What the rules of all pages say about the runs looked at. A note is kept with the run and seen by everybody."
    shown: list[Any] = [_alert(alert) for alert in sorted(alerts, key=lambda alert: alert.acknowledged)]
    empty = html.P("No rule warns about the runs looked at.", className="empty")
    return [html.H2("Warnings"), html.P(about, className="quiet"), *(shown or [empty])]


def _alert(alert: Alert) -> html.Div:
    since = "" if alert.step is None else f", first at step {alert.step}"
    name = f"{alert.run_id}/{alert.rule}"
    return html.Div(
        [
            html.H3(f"{alert.level}: {alert.rule}"),
            html.P(escape.plain(alert.says)),
            html.P(
                f"{escape.plain(alert.run_name, 60)} ({alert.run_id[:8]}): {alert.value:.6g}, limit {alert.limit:.6g}{since}",
                className="quiet",
            ),
            *_behind(alert),
            html.P(
                f"Acknowledged: {escape.plain(alert.note)}" if alert.acknowledged else "Not acknowledged."
            ),
            html.Div(
                [
                    dcc.Input(
                        id={"kind": "note", "of": name},
                        type="text",
                        placeholder="What was found, what is done about it",
                        maxLength=MAX_NOTE,
                        debounce=False,
                    ),
                    html.Button("Acknowledge", id={"kind": "acknowledge", "of": name}),
                    html.Span("", id={"kind": "answer", "of": name}, role="status"),
                ],
                className="answer",
            ),
        ],
        className=f"alert {alert.level}",
    )


def _behind(alert: Alert) -> list[Any]:
    rows = alert.behind[:12]
    if not rows:
        return []
    header = tuple(dict.fromkeys(key for row in rows for key in row))
    grid = Grid(header, tuple(tuple(cell(row.get(key)) for key in header) for row in rows))
    return [html.Details([html.Summary(f"What is behind it ({len(alert.behind)} rows)"), _grid(grid)])]
