"""How a training run went, as one self-contained HTML page: losses, lambda with p99, atom type mass."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cedkv import ledger
from cedkv.report import escape
from cedkv.report.traces import Row, Traces, column, rows_of

# Okabe and Ito's palette: told apart with any colour vision.
_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _RED, _PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
_LOSS_COLOURS = {
    ledger.LOSS: _BLACK,
    ledger.LOSS_ON: _BLUE,
    ledger.LOSS_OFF: _RED,
    ledger.LOSS_STR: _GREEN,
}
_TYPE_COLOURS = dict(zip(ledger.ATOM_TYPES, (_BLUE, _SKY, _GREEN, _YELLOW, _PURPLE, _RED), strict=True))
_LOSSES, _LAMBDA, _MASS = 1, 2, 3  # rows of the page


def training_figure(
    traces: Traces, *, p99_limit: float | None, delimiter_cap: float | None, title: str = ""
) -> go.Figure:
    """Three charts over the steps, one above the other.

    Args:
        traces: rows by artifact name, see ``cedkv.report.traces``. What is missing leaves its chart empty.
        p99_limit: the Gate B limit in nats, drawn as a line.
        delimiter_cap: largest delimiter mass of one slot, drawn as a line.
        title: shown above; any text.
    """
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        specs=[[{}], [{"secondary_y": True}], [{}]],
        subplot_titles=("Losses (nats)", "p99 of the stress KL (nats) and λ_off", "Atom type mass"),
    )
    _add_losses(figure, rows_of(traces, ledger.LOSS_CURVE))
    _add_lambda(figure, rows_of(traces, ledger.LAMBDA_TRACE), p99_limit)
    _add_mass(figure, rows_of(traces, ledger.ATOM_TYPE_MASS), delimiter_cap)
    figure.update_xaxes(title_text="step", row=_MASS, col=1)
    figure.update_layout(
        title=escape.markup(title, 120), template="plotly_white", height=1000, hovermode="x unified"
    )
    for row, legend in ((_LOSSES, "legend"), (_LAMBDA, "legend2"), (_MASS, "legend3")):
        top = _panel(figure, row).domain[1]
        figure.update_layout({legend: {"y": top, "yanchor": "top", "x": 1.07}})
    return figure


def training_html(
    traces: Traces, *, p99_limit: float | None, delimiter_cap: float | None, title: str = ""
) -> str:
    """``training_figure`` as one HTML page that needs no network: plotly's script is inside (about 5 MB)."""
    figure = training_figure(traces, p99_limit=p99_limit, delimiter_cap=delimiter_cap, title=title)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    return page


def _add_losses(figure: go.Figure, rows: list[Row]) -> None:
    steps = column(rows, "step")
    for name, colour in _LOSS_COLOURS.items():
        line = go.Scatter(
            x=steps, y=column(rows, name), name=name, mode="lines", line={"color": colour}, legend="legend"
        )
        figure.add_trace(line, row=_LOSSES, col=1)


def _add_lambda(figure: go.Figure, rows: list[Row], limit: float | None) -> None:
    steps = column(rows, "step")
    lines = (
        (ledger.P99_RAW, {"color": _SKY}, False),
        (ledger.P99_EMA, {"color": _BLUE}, False),
        (ledger.LAMBDA_OFF, {"color": _ORANGE, "shape": "hv"}, True),
    )
    for name, style, on_the_right in lines:
        line = go.Scatter(
            x=steps, y=column(rows, name), name=name, mode="lines", line=style, legend="legend2"
        )
        figure.add_trace(line, row=_LAMBDA, col=1, secondary_y=on_the_right)
    figure.update_yaxes(title_text="nats", row=_LAMBDA, col=1, secondary_y=False)
    figure.update_yaxes(title_text="λ_off", row=_LAMBDA, col=1, secondary_y=True, showgrid=False)
    if limit is not None:
        _add_limit(figure, limit, f"limit {limit:g}", _LAMBDA)


def _add_mass(figure: go.Figure, rows: list[Row], cap: float | None) -> None:
    steps = column(rows, "step")
    for kind, colour in _TYPE_COLOURS.items():
        area = go.Scatter(
            x=steps,
            y=column(rows, kind),
            name=kind,
            mode="lines",
            stackgroup="mass",
            line={"color": colour, "width": 0.5},
            legend="legend3",
        )
        figure.add_trace(area, row=_MASS, col=1)
    figure.update_yaxes(range=[0, 1], row=_MASS, col=1)
    if cap is not None:
        peak = go.Scatter(
            x=steps,
            y=column(rows, "delimiter_slot_max"),
            name="largest delimiter mass of a slot",
            mode="lines",
            line={"color": _BLACK, "dash": "dot"},
            legend="legend3",
        )
        figure.add_trace(peak, row=_MASS, col=1)
        _add_limit(figure, cap, f"delimiter cap {cap:g}", _MASS)


def _panel(figure: go.Figure, row: int) -> go.layout.YAxis:
    """The left axis of one chart."""
    return figure.get_subplot(row, 1).yaxis


def _add_limit(figure: go.Figure, at: float, label: str, row: int) -> None:
    style = {"line_dash": "dash", "line_color": _BLACK, "line_width": 1}
    figure.add_hline(y=at, annotation_text=label, annotation_position="top left", row=row, col=1, **style)
