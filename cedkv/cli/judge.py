"""Commands that read runs from the log and judge or describe them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.cli.shared import DEFAULT_EXPERIMENT
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.core.verdict import Verdict
    from cedkv.release.verdict import Surroundings
    from cedkv.tracking.record import RunRecord


def gate(arguments: argparse.Namespace) -> int:
    """Judge one run, or all of an experiment; print the verdict and write it back. The status is the verdict."""
    from cedkv.release.exit_codes import PASS, exit_code, exit_code_of_all
    from cedkv.release.verdict import verdict_on
    from cedkv.train.publish import record_verdict

    uri = store(arguments)
    verdicts: list[Verdict] = []
    for record, around in _judged(arguments, uri):
        verdict = verdict_on(record, around)
        if not arguments.dry_run:
            _note(record_verdict(record, verdict, uri))
        verdicts.append(_with_milestone(verdict, record) if arguments.milestone else verdict)
    print(_rendered(arguments, verdicts), end="")
    codes = [
        exit_code(verdict.gates, verdict.milestone if arguments.milestone else None) for verdict in verdicts
    ]
    return PASS if arguments.exit_zero else exit_code_of_all(codes)


def report(arguments: argparse.Namespace) -> int:
    """Print the report of a run; or write the dashboards over one or several runs as a file."""
    run_ids = _run_ids(arguments)
    if arguments.html is not None:
        from cedkv.cli.look import report_html

        report_html(arguments, run_ids)
        return 0
    if len(run_ids) > 1:
        raise UserError(f"{len(run_ids)} runs: a report in text is on one run; name one, or add --html FILE")
    arguments.run_id, arguments.latest = run_ids[0], False
    from cedkv.release.verdict import verdict_on
    from cedkv.report import run_page
    from cedkv.report.run_report import run_report, to_json
    from cedkv.tracking.reader import read_traces

    uri = store(arguments)
    record, around = next(_judged(arguments, uri))
    verdict = verdict_on(record, around)
    content = run_report(record, verdict, read_traces(record.run_id, uri))
    as_json = arguments.format == "json"
    print(to_json(content) if as_json else run_page.to_markdown(content, verdict), end="")
    return 0


def _run_ids(arguments: argparse.Namespace) -> list[str]:
    """The runs that a report is asked for."""
    if bool(arguments.run_ids) == arguments.latest:
        raise UserError("name runs by their ids, or give --latest: one of the two")
    if not arguments.latest:
        from cedkv.tracking.names import check_run_id

        whole = [check_run_id(whole_id(arguments, run_id)) for run_id in arguments.run_ids]
        return list(dict.fromkeys(whole))
    return [one_run(arguments)]


def one_run(arguments: argparse.Namespace) -> str:
    """The id of the run that was named, or of the newest one of the experiment."""
    if not arguments.latest:
        return whole_id(arguments, arguments.run_id)
    from cedkv.tracking.reader import latest_run

    return latest_run(arguments.experiment or DEFAULT_EXPERIMENT, store(arguments)).run_id


def _judged(arguments: argparse.Namespace, uri: str) -> Iterator[tuple[RunRecord, Surroundings]]:
    """The runs that were asked for, each with what stands around it."""
    from cedkv.tracking.reader import latest_run, read_run, read_runs
    from cedkv.train.publish import surroundings

    remember = not arguments.dry_run
    experiment = arguments.experiment or DEFAULT_EXPERIMENT
    if arguments.all:
        shared: Surroundings | None = None
        for record in read_runs(experiment, uri, view_all=False):
            if record.is_study:
                continue
            shared = shared or surroundings(record.experiment_id, uri, remember=remember)
            yield record, shared
        if shared is None:
            raise UserError(
                f"experiment {experiment!r} has no runs; train one, or name another with --experiment"
            )
        return
    record = (
        latest_run(experiment, uri)
        if arguments.latest
        else read_run(whole_id(arguments, arguments.run_id), uri)
    )
    around = surroundings(record.experiment_id, uri, remember=remember)
    if arguments.experiment and around.experiment != arguments.experiment:
        raise UserError(
            f"run {record.run_id} is in experiment {around.experiment!r}, not in {arguments.experiment!r}; "
            "leave --experiment out, or name a run of it"
        )
    yield record, around


def whole_id(arguments: argparse.Namespace, run_id: str) -> str:
    """A run's id from its beginning, six digits or more, as reports and pages shorten it; anything else as it is."""
    if not re.fullmatch("[0-9a-f]{6,31}", run_id):
        return run_id
    from cedkv.tracking.reader import whole_run_id

    experiment = getattr(arguments, "experiment", None) or DEFAULT_EXPERIMENT
    return whole_run_id(run_id, experiment, store(arguments))


def _rendered(arguments: argparse.Namespace, verdicts: list[Verdict]) -> str:
    from cedkv.report import summary, text

    if arguments.format == "junit":
        return text.to_junit(verdicts)
    if arguments.all:
        many = {"table": summary.to_table, "json": summary.to_json, "markdown": summary.to_markdown}
        return many[arguments.format](verdicts)
    one = {"table": text.to_table, "json": text.to_json, "markdown": text.to_markdown}
    return one[arguments.format](verdicts[0])


def _with_milestone(verdict: Verdict, record: RunRecord) -> Verdict:
    """Asked for the milestone of a run that was never exploratory: say so."""
    from cedkv.release.milestone import judge_milestone

    if verdict.milestone is not None:
        return verdict
    return replace(verdict, milestone=judge_milestone(record, (), None))


def _note(message: str) -> None:
    if message:
        print(f"cedkv: note: {message}", file=sys.stderr)


def store(arguments: argparse.Namespace) -> str:
    """The store a command reads: its argument, the environment, or the one under the project."""
    from cedkv.tracking.store import project_root, resolve_uri

    return resolve_uri(arguments.tracking_uri, os.environ, project_root(Path.cwd()))
