"""Commands that read a run from the log and judge or describe it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.core.verdict import MilestoneReport
    from cedkv.tracking.record import RunRecord

DEFAULT_EXPERIMENT = "cedkv"


def gate(arguments: argparse.Namespace) -> int:
    """Judge a run and print the verdict; its status is the exit status."""
    from cedkv.release.exit_codes import exit_code
    from cedkv.release.gates import judge
    from cedkv.report import text

    uri = _store(arguments)
    record = _record(arguments, uri)
    verdict = judge(record)
    milestone = _milestone(arguments, record, uri) if arguments.milestone else None
    render = {
        "table": text.to_table,
        "json": text.to_json,
        "markdown": text.to_markdown,
        "junit": text.to_junit,
    }[arguments.format]
    print(render(verdict, milestone), end="")
    return exit_code(verdict, milestone)


def report(arguments: argparse.Namespace) -> int:
    """Print the report of a run."""
    from cedkv.release.gates import judge
    from cedkv.report import run_page
    from cedkv.report.run_report import run_report, to_json
    from cedkv.tracking.reader import read_traces

    uri = _store(arguments)
    record = _record(arguments, uri)
    milestone = _milestone(arguments, record, uri) if arguments.milestone else None
    verdict = judge(record)
    content = run_report(record, verdict, milestone, read_traces(record.run_id, uri))
    as_json = arguments.format == "json"
    print(to_json(content) if as_json else run_page.to_markdown(content, verdict, milestone), end="")
    return 0


def _store(arguments: argparse.Namespace) -> str:
    from cedkv.tracking.store import project_root, resolve_uri

    return resolve_uri(arguments.tracking_uri, os.environ, project_root(Path.cwd()))


def _record(arguments: argparse.Namespace, uri: str) -> RunRecord:
    from cedkv.tracking.reader import latest_run, read_run

    if arguments.latest:
        return latest_run(arguments.experiment or DEFAULT_EXPERIMENT, uri)
    return read_run(arguments.run_id, uri)


def _milestone(arguments: argparse.Namespace, record: RunRecord, uri: str) -> MilestoneReport:
    """Judged among all runs of the run's experiment, deleted ones too."""
    from cedkv.release.milestone import find_baseline, judge_milestone
    from cedkv.tracking.reader import list_runs, read_run

    experiment = arguments.experiment or _logged_experiment(record) or DEFAULT_EXPERIMENT
    runs = list_runs(experiment, uri)
    if record.run_id not in {run.run_id for run in runs}:
        raise UserError(
            f"run {record.run_id} is not in experiment {experiment!r}, in which its index would be counted; "
            "name its experiment with --experiment"
        )
    found = find_baseline(record, runs)
    return judge_milestone(record, runs, None if found is None else read_run(found.run_id, uri))


def _logged_experiment(record: RunRecord) -> str | None:
    tracking = (record.config or {}).get("tracking")
    name = tracking.get("experiment") if isinstance(tracking, dict) else None
    return name if isinstance(name, str) else None
