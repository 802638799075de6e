"""A dashboard as one self-contained file: no network, no server, light and dark, and every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as quoted
from pathlib import Path
from typing import Final

from plotly.offline import get_plotlyjs

from cedkv.report import escape
from cedkv.report.dashboard.draw import draw_page
from cedkv.report.dashboard.drawn import Cell, Drawn, Grid, Tile
from cedkv.report.dashboard.spec import Page
from cedkv.report.dashboard.view import View

STYLE: Final = Path(__file__).parent / "assets" / "style.css"

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
# A figure is made when it comes near the window: fifty at once would take seconds.
_DRAW: Final = """
const seen = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting).forEach(e => {
  seen.unobserve(e.target);
  const figure = JSON.parse(document.getElementById(e.target.id + '-data').textContent);
  Plotly.newPlot(e.target, figure.data, figure.layout, {displaylogo: false, responsive: true});
}), {rootMargin: '600px'});
document.querySelectorAll('.plot').forEach(plot => seen.observe(plot));
"""


def to_html(pages: Sequence[Page], view: View, title: str) -> str:
    """All pages, one below the other, as one HTML document of about 5 MB: plotly's script is inside.

    Args:
        pages: what to show.
        view: the runs to show.
        title: any text.
    """
    drawn = [(page, draw_page(page, view)) for page in pages]
    links = "".join(f'<a href="#{quoted(page.slug)}">{escape.markup(page.page)}</a>' for page in pages)
    sections = "".join(_section(page, panels) for page, panels in drawn)
    names = ", ".join(escape.markup(run.label, 120) for run in view.runs) or "no run"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape.markup(title, 120)}</title><style>{STYLE.read_text()}</style></head><body>"
        f'<header><h1>{escape.markup(title, 120)}</h1><p class="quiet">{names}</p><nav>{links}</nav></header>'
        f"<main>{sections}</main><script>{get_plotlyjs()}</script><script>{_DRAW}</script></body></html>\n"
    )


def _section(page: Page, panels: Sequence[Drawn]) -> str:
    body = "".join(_panel(f"{page.slug}-{place}", drawn) for place, drawn in enumerate(panels))
    return (
        f'<section id="{quoted(page.slug)}"><h2>{escape.markup(page.page)}</h2>'
        f'<p class="quiet">{escape.markup(page.about)}</p><div class="panels">{body}</div></section>'
    )


def _panel(name: str, drawn: Drawn) -> str:
    panel = drawn.panel
    about = f'<p class="quiet">{escape.markup(drawn.about)}</p>' if drawn.about else ""
    return (
        f'<section class="panel {panel.width}"><h3>{escape.markup(panel.title)}</h3>'
        f'<p class="quiet">{escape.markup(panel.note)}</p>{about}{_body(quoted(name), drawn)}</section>'
    )


def _body(name: str, drawn: Drawn) -> str:
    if drawn.empty:
        return f'<p class="empty">{escape.markup(drawn.empty)}</p>'
    if drawn.tiles:
        return f'<div class="tiles">{"".join(map(_tile, drawn.tiles))}</div>'
    if drawn.figure is not None:
        # In a script element only "</" and "<!" could end or change what the parser reads.
        data = drawn.figure.to_json().replace("<", "\\u003c")
        return (
            f'<div class="plot" id="{name}" role="img" aria-label="{escape.markup(drawn.panel.title)}"></div>'
            f'<script type="application/json" id="{name}-data">{data}</script>'
        )
    return "".join(map(_grid, drawn.grids))


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><div class="quiet">{escape.markup(tile.run, 60)}</div>'
        f'<div class="value {tile.tone}">{escape.markup(tile.value)}</div>'
        f'<div class="quiet">{escape.markup(tile.detail)}</div></div>'
    )


def _grid(grid: Grid) -> str:
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape.markup(name)}</th>'
        for name, number in zip(grid.header, grid.numeric, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in grid.rows)
    about = f"<caption>{escape.markup(grid.about)}</caption>" if grid.about else ""
    return (
        f'<div class="scroll"><table>{about}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    return f'<td class="{"number " if cell.number else ""}{cell.tone}">{escape.markup(cell.text)}</td>'
