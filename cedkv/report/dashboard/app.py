"""The live dashboard: the pages of ``dashboards/`` over the runs of one experiment, on this machine only.

Every drawing comes from the log as it is; the browser asks again every few seconds. Nothing outside the machine is
asked for anything, and nobody outside it is answered: the server listens on the loopback address, and a request whose
Host or Origin is another one is refused (a page of some website cannot make a browser read or write here).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlencode

import dash
from dash import ALL, Input, Output, State, ctx, dcc, html
from flask import Flask, Response, abort, request

from cedkv.core.errors import UserError
from cedkv.report import escape
from cedkv.report.dashboard.alerts import Alert
from cedkv.report.dashboard.components import page_of, warnings_page
from cedkv.report.dashboard.spec import Page
from cedkv.report.dashboard.view import View
from cedkv.tracking.record import RunRecord

WARNINGS: Final = "warnings"
"""The address of the page of warnings, which no file describes."""

MOST_RUNS: Final = 20
REFRESH_MS: Final = 3000
"""How often a page asks for what is new."""

_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class Source(Protocol):
    """Where the app gets what it shows."""

    experiment: str

    def listed(self) -> list[RunRecord]:
        """The runs of the experiment, without artifacts."""

    def view(self, run_ids: Iterable[str], listed: Sequence[RunRecord] | None = None) -> View:
        """These runs as they are now; ``listed`` where the runs have just been listed."""

    def acknowledge(self, run_id: str, rule: str, note: str) -> None:
        """Keep a note on a warning with its run."""


def make_app(source: Source, pages: Sequence[Page], port: int) -> dash.Dash:
    """The app; ``app.server`` is its WSGI application.

    Args:
        source: the runs.
        pages: what is shown of them.
        port: where it will listen; requests for another host or port are refused.
    """
    server = Flask("cedkv")
    _guard(server, port)
    app = dash.Dash(
        "cedkv",
        server=server,  # type: ignore[arg-type]  # dash is typed for bool, and documents Flask
        title=f"{escape.plain(source.experiment, 60)} · cedkv",
        update_title="",
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        suppress_callback_exceptions=True,
    )
    app.layout = lambda: _frame(source)
    _register(app, source, pages)
    return app


def serve(app: dash.Dash, port: int, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C. ``UserError`` where the port is taken."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        running = make_server("127.0.0.1", port, app.server, threaded=True)
    except (OSError, SystemExit):  # werkzeug reports a taken port by leaving
        raise UserError(f"port {port} of 127.0.0.1 is taken; name another with --port") from None
    ready(f"http://127.0.0.1:{port}/")
    with running:
        running.serve_forever()


def _guard(server: Flask, port: int) -> None:
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    @server.before_request
    def refuse_strangers() -> None:
        origin = request.headers.get("Origin")
        if request.host not in hosts or (
            origin is not None and origin not in {f"http://{host}" for host in hosts}
        ):
            abort(403)

    @server.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


# ---- the frame -------------------------------------------------------------------------------------------------------


def _frame(source: Source) -> Any:
    return html.Div(
        [
            dcc.Location(id="address", refresh="callback-nav"),
            dcc.Interval(id="tick", interval=REFRESH_MS),
            dcc.Store(id="seen"),
            html.Header(
                [
                    html.H1(f"Experiment {escape.plain(source.experiment, 80)}"),
                    html.Div(
                        [
                            html.Div(
                                dcc.Dropdown(
                                    id="runs",
                                    options=_options(source.listed()),
                                    multi=True,
                                    placeholder="Choose runs to look at",
                                    closeOnSelect=False,
                                ),
                                className="runs",
                            ),
                            html.Button("Pause", id="pause", n_clicks=0),
                            html.Button("Light or dark", id="theme", n_clicks=0),
                        ],
                        className="bar",
                    ),
                    html.Nav(id="pages", **_aria(label="Pages")),
                    html.P("", id="told", className="quiet told", role="status"),
                ]
            ),
            html.Main(id="page"),
        ]
    )


def _register(app: dash.Dash, source: Source, pages: Sequence[Page]) -> None:
    _register_pages(app, source, pages)
    _register_choice(app, source)
    _register_acknowledgement(app, source)
    app.clientside_callback(
        "n => n % 2 ? ['Resume', 0] : ['Pause', -1]",
        Output("pause", "children"),
        Output("tick", "max_intervals"),
        Input("pause", "n_clicks"),
    )
    app.clientside_callback(
        """n => {
          const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)').matches;
          if (n) root.dataset.theme = (root.dataset.theme ?? (dark ? 'dark' : 'light')) === 'dark' ? 'light' : 'dark';
          return dash_clientside.no_update;
        }""",
        Output("theme", "title"),
        Input("theme", "n_clicks"),
    )


def _register_pages(app: dash.Dash, source: Source, pages: Sequence[Page]) -> None:
    by_slug = {page.slug: page for page in pages}

    @app.callback(
        Output("runs", "options"),
        Output("pages", "children"),
        Output("page", "children"),
        Output("told", "children"),
        Output("seen", "data"),
        Input("address", "search"),
        Input("address", "pathname"),
        Input("tick", "n_intervals"),
        State("seen", "data"),
        # A drawing that takes longer than the interval would never arrive: ask again when it has.
        running=[(Output("tick", "disabled"), True, False)],
    )
    def show(search: str | None, path: str | None, _ticks: int | None, seen: str | None) -> tuple[Any, ...]:
        slug = (path or "/").strip("/") or pages[0].slug
        keep = dash.no_update
        try:
            listed = source.listed()
            view = source.view(chosen(search, listed), listed)
            alerts = [alert for run in view.runs for alert in view.alerts(run)]
            now = _digest(slug, view, alerts)
            if now == seen and ctx.triggered_id == "tick":
                return keep, keep, keep, "", keep
            page = warnings_page(alerts) if slug == WARNINGS else page_of(by_slug, slug, view)
        except UserError as error:
            return keep, keep, keep, f"The log cannot be read: {escape.plain(str(error))}", keep
        return _options(listed), _links(pages, slug, search or "", alerts), page, "", now


def _register_choice(app: dash.Dash, source: Source) -> None:
    """The chosen runs are part of the address, so that a page can be linked to."""

    @app.callback(Output("runs", "value"), Input("address", "search"))
    def choose(search: str | None) -> list[str]:
        return chosen(search, source.listed())

    @app.callback(
        Output("address", "search"),
        Input("runs", "value"),
        State("address", "search"),
        prevent_initial_call=True,
    )
    def remember(runs: list[str] | None, search: str | None) -> Any:
        if (runs or []) == chosen(search, source.listed()):
            return dash.no_update
        return "?" + urlencode({"runs": ",".join(runs or ["none"])})


def _register_acknowledgement(app: dash.Dash, source: Source) -> None:
    @app.callback(
        Output({"kind": "answer", "of": ALL}, "children"),
        Input({"kind": "acknowledge", "of": ALL}, "n_clicks"),
        State({"kind": "note", "of": ALL}, "value"),
        State({"kind": "note", "of": ALL}, "id"),
        prevent_initial_call=True,
    )
    def acknowledge(
        _clicks: list[int | None], notes: list[str | None], ids: list[dict[str, str]]
    ) -> list[Any]:
        pressed = ctx.triggered_id
        answers: list[Any] = [dash.no_update] * len(ids)
        if not pressed or not ctx.triggered[0]["value"]:  # a page that was drawn anew, not a press
            return answers
        for place, (note, name) in enumerate(zip(notes, ids, strict=True)):
            if name["of"] == pressed["of"]:
                answers[place] = _acknowledged(source, name["of"], note or "")
        return answers


def chosen(search: str | None, listed: Sequence[RunRecord]) -> list[str]:
    """The runs that an address asks for; without any, the newest one. What the experiment does not have is left out."""
    asked = parse_qs((search or "").removeprefix("?")).get("runs")
    known = {run.run_id for run in listed}
    if asked is None:
        newest = max(listed, key=lambda run: run.start_time_ms, default=None)
        return [] if newest is None else [newest.run_id]
    return [run_id for run_id in dict.fromkeys(asked[0].split(",")) if run_id in known][:MOST_RUNS]


def _options(listed: Sequence[RunRecord]) -> list[dict[str, str]]:
    newest = sorted(listed, key=lambda run: -run.start_time_ms)
    return [{"value": run.run_id, "label": escape.plain(_called(run), 80)} for run in newest]


def _called(run: RunRecord) -> str:
    return f"{run.name} ({run.run_id[:8]}){'' if run.status == 'FINISHED' else f', {run.status}'}"


def _links(pages: Sequence[Page], slug: str, search: str, alerts: Sequence[Alert]) -> list[Any]:
    open_alerts = sum(not alert.acknowledged for alert in alerts)
    count = [html.Span(str(open_alerts), className="count")] if open_alerts else []
    named: list[tuple[str, list[Any]]] = [(page.slug, [escape.plain(page.page, 60)]) for page in pages]
    named.append((WARNINGS, ["Warnings", *count]))
    return [
        html.Span(
            dcc.Link(children, href=f"/{name}{search}"), **(_aria(current="page") if name == slug else {})
        )
        for name, children in named
    ]


def _aria(**values: str) -> dict[str, Any]:
    return {f"aria-{name}": value for name, value in values.items()}


def _digest(slug: str, view: View, alerts: Sequence[Alert]) -> str:
    """Changes whenever something shown does, so that a page at rest is left alone: what is typed there stays."""
    alert_state = [(alert.run_id, alert.rule, alert.value, alert.note) for alert in alerts]
    runs = [(run.run_id, run.name, run.status, sorted(run.tags.items())) for run in view.listed]
    points = [sum(len(series.values) for series in run.history.values()) for run in view.runs]
    shown: tuple[Any, ...] = (
        (slug, runs, alert_state) if slug == WARNINGS else (slug, runs, alert_state, points)
    )
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def _acknowledged(source: Source, name: str, note: str) -> str:
    if not note.strip():
        return "Write a note first."
    run_id, _, rule = name.partition("/")
    try:
        source.acknowledge(run_id, rule, note.strip())
    except UserError as error:
        return f"Not kept: {escape.plain(str(error), 300)}"
    return "Kept with the run."
