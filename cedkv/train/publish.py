"""From the log to the log: judge runs from what they logged, and write the verdict back to them."""

from __future__ import annotations

from functools import cache

from cedkv import ledger
from cedkv.core.verdict import Verdict
from cedkv.release.certify import Attempt
from cedkv.release.milestone import is_explored
from cedkv.release.verdict import Surroundings, verdict_on
from cedkv.report import run_page, text, written_back
from cedkv.report.run_report import run_report, to_json
from cedkv.tracking.attach import attach, write_back
from cedkv.tracking.ledgers import Ledgers, enter_explored, read_ledgers
from cedkv.tracking.reader import list_runs, read_run, read_traces
from cedkv.tracking.record import RunRecord

ENDED = ("FINISHED", "FAILED", "KILLED")


def surroundings(experiment_id: str, uri: str, *, remember: bool) -> Surroundings:
    """What verdicts on runs of one experiment read around them.

    Args:
        experiment_id: the experiment's id.
        uri: the store.
        remember: enter exploratory runs that the ledger misses, so that they count even when they are erased.
    """
    ledgers = read_ledgers(experiment_id, uri)
    runs = list_runs(ledgers.experiment, uri)
    explored = dict(ledgers.explored)
    for run in runs:
        if run.run_id not in explored and is_explored(run):
            explored[run.run_id] = run.start_time_ms
            if remember:
                enter_explored(experiment_id, run.run_id, run.start_time_ms, uri)
    return Surroundings(
        ledgers.experiment, runs, explored, _attempts(ledgers), cache(lambda run_id: read_run(run_id, uri))
    )


def attempts(experiment_id: str, uri: str) -> list[Attempt]:
    """Every opening of the sealed set in an experiment, as its ledger remembers them."""
    return _attempts(read_ledgers(experiment_id, uri))


def _attempts(ledgers: Ledgers) -> list[Attempt]:
    return [Attempt.read(key, entry) for key, entry in ledgers.certified.items()]


def publish(run_id: str, uri: str) -> Verdict:
    """Judge a run that has ended; attach its report, and write the verdict back. All from the log alone."""
    record, traces = read_run(run_id, uri), read_traces(run_id, uri)
    verdict = verdict_on(record, surroundings(record.experiment_id, uri, remember=True))
    content = run_report(record, verdict, traces)
    files = {
        ledger.REPORT_MARKDOWN: run_page.to_markdown(content, verdict),
        ledger.REPORT_JSON: to_json(content),
    }
    attach(run_id, uri, files)
    record_verdict(record, verdict, uri)
    return verdict


def record_verdict(record: RunRecord, verdict: Verdict, uri: str) -> str:
    """Write a verdict back to its run; the same verdict again changes nothing.

    Returns:
        Why nothing could be written; empty when the run holds the verdict now.
    """
    if record.lifecycle != "active":
        return f"run {record.run_id} was deleted: the verdict is not written back; restore the run for that"
    if record.status not in ENDED:
        return f"run {record.run_id} is {record.status}: the verdict is not written back before it ends"
    before = record.tags.get(ledger.TAG_DESCRIPTION, "")
    write_back(
        record.run_id,
        uri,
        tags=written_back.tags(verdict) | {ledger.TAG_DESCRIPTION: written_back.description(verdict, before)},
        metrics=written_back.metrics(verdict),
        files={
            ledger.GATE_REPORT_JSON: text.to_json(verdict),
            ledger.GATE_REPORT_MARKDOWN: text.to_markdown(verdict),
        },
    )
    return ""
