"""What a reviewer's desk holds: the runs of one experiment as dashboards read them, remembered where they cannot change."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.core.verdict import Verdict
from cedkv.release.milestone import find_baseline
from cedkv.release.verdict import verdict_on
from cedkv.report.dashboard.alerts import Alert, acknowledgement, alerts_of, rules_of
from cedkv.report.dashboard.pages import find_pages, read_pages
from cedkv.report.dashboard.spec import Page
from cedkv.report.dashboard.view import Rows, RunView, View
from cedkv.tracking.attach import attach, write_back
from cedkv.tracking.feed import Feed
from cedkv.tracking.reader import find_run, list_runs, read_experiment, read_rows, read_run
from cedkv.tracking.record import RunRecord
from cedkv.tracking.store import project_root
from cedkv.train.publish import ENDED, surroundings

MOST_REMEMBERED: Final = 256
"""Artifacts, records and verdicts that are kept; the oldest go first."""


def experiment_of(run_id: str, uri: str) -> str:
    """The name of the experiment that a run is in; ``UserError`` where the store has no such run."""
    return read_experiment(find_run(run_id, uri)[0].experiment_id, uri)[0]


def report_page(run_ids: Sequence[str], uri: str, pages: Sequence[Page]) -> str:
    """The pages over runs of one experiment as one HTML file.

    Raises:
        UserError: a run that is not in the store, or not in the experiment of the first one.
    """
    from cedkv.report.dashboard.html import to_html  # imports plotly, which takes a second

    experiment = experiment_of(run_ids[0], uri)
    view = Desk(experiment, uri, pages).view(run_ids)
    known = {run.record.run_id for run in view.runs}
    missing = [run_id for run_id in run_ids if run_id not in known]
    if missing:
        raise UserError(
            f"run {missing[0]} is deleted or not in experiment {experiment!r} as run {run_ids[0]} is; a report shows runs of "
            "one experiment: leave it out"
        )
    about = "studies" if view.runs[0].record.is_study else "runs"
    pages = [page for page in pages if page.of == about]
    return to_html(pages, view, f"{experiment}: {', '.join(run.record.name for run in view.runs)}")


def attach_page(run_id: str, uri: str) -> str:
    """Attach the pages of the project, or of the installation, to a run that has ended.

    Returns:
        why there is none; empty when all is well. A page is for looking at: no run fails for want of one.
    """
    try:
        pages = read_pages(find_pages(None, project_root(Path.cwd())))
        attach(run_id, uri, {ledger.REPORT_HTML: report_page([run_id], uri, pages)})
    except UserError as error:
        return f"no {ledger.REPORT_HTML}: {error}"
    return ""


class Desk:
    """Views of the runs of one experiment; for several threads.

    Args:
        experiment: its name.
        uri: the store.
        pages: their warning rules are held against the runs.
    """

    def __init__(self, experiment: str, uri: str, pages: Sequence[Page]) -> None:
        self.experiment, self.uri = experiment, uri
        self._rules = rules_of(pages)
        self._feed = Feed(uri)
        self._held: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.RLock()

    def listed(self) -> list[RunRecord]:
        """The runs of the experiment by start time, without their artifacts; deleted ones excepted."""
        return list_runs(self.experiment, self.uri, view_all=False)

    def view(self, run_ids: Iterable[str], listed: Sequence[RunRecord] | None = None) -> View:
        """The runs of these ids as they are now. Ids that the experiment does not have are left out.

        ``listed`` where `listed` has just been asked.
        """
        with self._lock:
            listed = self.listed() if listed is None else listed
            by_id = {run.run_id: run for run in listed}
            wanted = [run_id for run_id in dict.fromkeys(run_ids) if run_id in by_id]
            self._feed.refresh(wanted)
            runs = [self._run(by_id[run_id], listed) for run_id in wanted]
        return View(
            runs,
            listed,
            baseline=lambda run: self._baseline(run, listed),
            alerts=self.alerts,
            also=lambda run_ids: self.view(run_ids, listed).runs,
        )

    def alerts(self, run: RunView) -> list[Alert]:
        """What the rules of all pages say of a run."""
        return alerts_of(run, self._rules)

    def acknowledge(self, run_id: str, rule: str, note: str) -> None:
        """Keep a note on a warning as a tag of its run.

        Raises:
            UserError: no such rule or run, an empty note, or a store that refuses.
        """
        known = [known.name for known in self._rules]
        if rule not in known:
            raise UserError(f"warning rule {rule[:80]!r} is none of {', '.join(known)}; name one of these")
        if not note.strip():
            raise UserError("the note is empty; say what was found, or what is done about it")
        tag = {ledger.ACKNOWLEDGED_PREFIX + rule: acknowledgement(note.strip())}
        write_back(run_id, self.uri, tags=tag, metrics={}, files={})

    def _run(self, listed: RunRecord, others: Sequence[RunRecord]) -> RunView:
        state = (listed.run_id, listed.status, listed.tags.get(ledger.TAG_CERTIFIED))
        whole = self._remembered(("record", *state), lambda: read_run(listed.run_id, self.uri))
        if whole.config is None:  # a run that has just started logs it in a moment
            self._held.pop(("record", *state), None)
        record = dataclasses.replace(
            whole, name=listed.name, status=listed.status, tags=listed.tags, metrics=listed.metrics
        )
        around = frozenset((run.run_id, run.status) for run in others)
        return RunView(
            record,
            self._feed.histories.get(listed.run_id, {}),
            rows=partial(self._rows, listed),
            verdict=lambda: self._remembered(("verdict", around, *state), lambda: self._verdict(record)),
        )

    def _rows(self, run: RunRecord, path: str) -> Rows | None:
        """An artifact; one of a run that goes on may change."""
        if run.status not in ENDED:
            return read_rows(run.run_id, path, self.uri)
        state = (run.run_id, run.status, run.tags.get(ledger.TAG_CERTIFIED))
        return self._remembered(("rows", path, *state), lambda: read_rows(run.run_id, path, self.uri))

    def _verdict(self, record: RunRecord) -> Verdict | None:
        if record.status not in ENDED:
            return None
        return verdict_on(record, surroundings(record.experiment_id, self.uri, remember=False))

    def _baseline(self, run: RunView, listed: Sequence[RunRecord]) -> RunView | None:
        found = find_baseline(run.record, listed)
        if found is None:
            return None
        with self._lock:
            self._feed.refresh([found.run_id])
            return self._run(found, listed)

    def _remembered(self, key: tuple[Any, ...], read: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._held:
                self._held[key] = read()
                if len(self._held) > MOST_REMEMBERED:
                    self._held.pop(next(iter(self._held)))
            return self._held[key]
