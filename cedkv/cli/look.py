"""Commands for people who look: the live dashboard, a report as one file, the list of warnings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.cli.judge import store, whole_id
from cedkv.cli.shared import DEFAULT_EXPERIMENT
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cedkv.report.dashboard.alerts import Alert
    from cedkv.report.dashboard.spec import Page
    from cedkv.train.desk import Desk

WARNED = 13
"""Status of `cedkv warnings --fail-on` where a warning of that level or a worse one is not acknowledged."""


def dashboard(arguments: argparse.Namespace) -> int:
    """Serve the pages until Ctrl-C."""
    pages = _pages(arguments)
    if arguments.check:
        print(f"{len(pages)} pages are valid: {', '.join(page.page for page in pages)}")
        return 0
    try:
        from cedkv.report.dashboard.app import make_app, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"dash", "flask", "werkzeug"}:
            raise
        raise UserError(
            "the live dashboard needs dash, which is not installed: pip install -c constraints.txt -e '.[dashboard]' "
            "(cedkv report --html works without it)"
        ) from None
    desk = _desk(arguments, pages)
    desk.listed()  # a store or experiment that is not there is refused before anything listens
    serve(
        make_app(desk, pages, arguments.port),
        arguments.port,
        lambda url: print(f"dashboard  {url}  (Ctrl-C ends it)", flush=True),
    )
    return 0


def ui(arguments: argparse.Namespace) -> int:
    """Serve MLflow's own pages on the store, and say where its comparison of runs is."""
    from cedkv.tracking.ui import show

    show(
        store(arguments),
        arguments.experiment or DEFAULT_EXPERIMENT,
        arguments.port,
        lambda line: print(line, flush=True),
    )
    return 0


def report_html(arguments: argparse.Namespace, run_ids: Sequence[str]) -> None:
    """Write the pages over these runs as one file, and keep it with the first of them."""
    from cedkv import ledger
    from cedkv.tracking.attach import attach
    from cedkv.train.desk import report_page

    uri = store(arguments)
    page = report_page(run_ids, uri, _pages(arguments))
    target = Path(arguments.html)
    try:
        target.write_text(page)
    except OSError as error:
        raise UserError(
            f"--html {arguments.html!r} cannot be written ({error.strerror}); name another file"
        ) from None
    attach(run_ids[0], uri, {ledger.REPORT_HTML: page})
    print(f"{target}, {len(page) / 1e6:.1f} MB, also {ledger.REPORT_HTML} of run {run_ids[0]}")


def warnings(arguments: argparse.Namespace) -> int:
    """List what the rules say; or acknowledge one of them with a note."""
    if arguments.run_id is not None:
        arguments.run_id = whole_id(arguments, arguments.run_id)
    desk = _desk(arguments, _pages(arguments))
    if arguments.acknowledge is not None:
        return _acknowledge(arguments, desk)
    alerts = [alert for run in desk.view(_looked_at(arguments, desk)).runs for alert in desk.alerts(run)]
    print(_as_json(alerts) if arguments.format == "json" else _as_table(alerts), end="")
    if arguments.fail_on is None:
        return 0
    from cedkv.report.dashboard.spec import LEVELS

    serious = LEVELS[LEVELS.index(arguments.fail_on) :]
    return WARNED if any(alert.level in serious and not alert.acknowledged for alert in alerts) else 0


def _acknowledge(arguments: argparse.Namespace, desk: Desk) -> int:
    if arguments.run_id is None or arguments.note is None:
        raise UserError("--acknowledge RULE needs the id of a run and --note TEXT; give both")
    desk.acknowledge(arguments.run_id, arguments.acknowledge, arguments.note)
    print(f"kept with run {arguments.run_id}")
    return 0


def _looked_at(arguments: argparse.Namespace, desk: Desk) -> list[str]:
    listed = desk.listed()
    if arguments.run_id is not None:
        if all(run.run_id != arguments.run_id for run in listed):
            raise UserError(
                f"run {arguments.run_id} is deleted or not in experiment {desk.experiment!r}; leave --experiment out, or "
                "restore the run"
            )
        return [arguments.run_id]
    if not listed:
        raise UserError(
            f"experiment {desk.experiment!r} has no runs; train one, or name another with --experiment"
        )
    newest = sorted(listed, key=lambda run: -run.start_time_ms)
    return [run.run_id for run in (newest if arguments.all else newest[:1])]


def _as_table(alerts: Sequence[Alert]) -> str:
    from cedkv.report import escape
    from cedkv.report.tables import aligned, shown

    if not alerts:
        return "no warnings\n"
    rows = [
        (
            alert.level,
            alert.run_id[:8],
            escape.plain(alert.run_name, 24),
            alert.rule,
            "" if alert.step is None else str(alert.step),
            shown(alert.value),
            shown(alert.limit),
            f"acknowledged: {escape.plain(alert.note, 60)}" if alert.acknowledged else alert.says,
        )
        for alert in alerts
    ]
    header = ("level", "run", "name", "rule", "step", "value", "limit", "")
    right = (False, False, False, False, True, True, True, False)
    return "\n".join(aligned([header, *rows], right)) + "\n"


def _as_json(alerts: Sequence[Alert]) -> str:
    from dataclasses import asdict

    from cedkv.report.tables import jsonable

    return json.dumps(jsonable([asdict(alert) for alert in alerts]), indent=2) + "\n"


def _pages(arguments: argparse.Namespace) -> tuple[Page, ...]:
    from cedkv.report.dashboard.pages import find_pages, read_pages
    from cedkv.tracking.store import project_root

    return read_pages(find_pages(arguments.pages, project_root(Path.cwd())))


def _desk(arguments: argparse.Namespace, pages: Sequence[Page]) -> Desk:
    from cedkv.train.desk import Desk, experiment_of

    uri, experiment = store(arguments), arguments.experiment
    run_id = getattr(arguments, "run_id", None)
    if experiment is None and run_id is not None:
        experiment = experiment_of(run_id, uri)
    return Desk(experiment or DEFAULT_EXPERIMENT, uri, pages)
