"""Tables: of artifacts, grouped or row by row, of a verdict, of the experiment's runs, of warnings."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cedkv import ledger
from cedkv.core import stats
from cedkv.core.verdict import Check, MilestoneReport, Verdict
from cedkv.report import escape, text
from cedkv.report.dashboard.drawn import Cell, Drawn, Grid, cell
from cedkv.report.dashboard.spec import BUILT_IN, Table
from cedkv.report.dashboard.view import Rows, RunView, View, short_key
from cedkv.report.tables import shown
from cedkv.report.traces import finite
from cedkv.tracking.record import RunRecord


def table(panel: Table, view: View) -> Drawn:
    """The rows that were asked for."""
    if panel.rows not in BUILT_IN:
        return _artifact(panel, view)
    grids = _BUILT_IN[panel.rows](view, panel.most)
    empty = "" if grids else _EMPTY[panel.rows]
    return Drawn(panel, grids=grids, empty=empty)


def _artifact(panel: Table, view: View) -> Drawn:
    grids = []
    for run in view.runs:
        rows = run.rows(panel.rows)
        if rows:
            grids.append(_grouped(panel, run, rows) if panel.group else _listed(panel, run, rows))
    return Drawn(
        panel,
        grids=tuple(grids),
        empty=""
        if grids
        else f"No run looked at has rows in {panel.rows}: either nothing of the kind happened, or the run has not ended.",
    )


def _listed(panel: Table, run: RunView, rows: Rows) -> Grid:
    known = dict.fromkeys(key for row in rows for key in row)
    columns = tuple(_columns(panel.columns, known)) if panel.columns else tuple(known)
    ordered = list(rows)
    if panel.sort is not None:
        ordered.sort(key=lambda row: _rank(row.get(panel.sort or "")), reverse=panel.descending)
        ordered.sort(key=lambda row: row.get(panel.sort or "") is None)  # what has no such value comes last
    body = tuple(tuple(cell(row.get(column)) for column in columns) for row in ordered[: panel.most])
    left = len(rows) - len(body)
    header = tuple(map(short_key, columns))
    return Grid(header, body, run.label + (f", {len(body)} of {len(rows)} rows" if left else ""))


def _columns(wanted: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """A name as it is, whether rows have it or not; a pattern as those of their keys that it means."""
    names = sorted(known)
    for name in wanted:
        yield from fnmatch.filter(names, name) if "*" in name else [name]


def _rank(value: Any) -> tuple[int, float, str]:
    number = finite(value)
    return (0, 0.0, str(value)) if number is None else (1, number, "")


def _grouped(panel: Table, run: RunView, rows: Rows) -> Grid:
    """For each group how many rows, how many over the limit, the p99 and the largest value."""
    limit = None if panel.limit is None else run.limit(panel.limit)
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = finite(row.get(panel.value or ""))
        if value is not None:
            groups.setdefault(str(row.get(panel.group or "", "")), []).append(value)
    body = []
    for name, values in sorted(groups.items(), key=lambda item: -max(item[1])):
        over = None if limit is None else sum(value > limit for value in values)
        share = "" if over is None else f"{over / len(values):.2%}"
        body.append(
            (
                cell(name),
                cell(len(values)),
                Cell("" if over is None else str(over), "bad" if over else "", number=True),
                Cell(share, number=True),
                cell(stats.order_statistic_quantile(values)),
                cell(max(values)),
            )
        )
    header = (
        str(panel.group),
        "n",
        f"over {limit:g}" if limit is not None else "over",
        "share",
        "p99",
        "largest",
    )
    return Grid(header, tuple(body), run.label)


def _checks(view: View, most: int) -> tuple[Grid, ...]:
    header = ("gate", "check", "value", "", "limit", "margin", "n", "status", "reason")
    return tuple(
        Grid(header, tuple(map(_check, verdict.gates.checks[:most])), run.label)
        for run, verdict in _judged(view)
    )


def _check(check: Check) -> tuple[Cell, ...]:
    group, name, value, operator, limit, margin, n, status = text.cells(check)
    return (
        cell(group),
        cell(name),
        Cell(escape.plain(value, 60), number=True),
        cell(operator),
        Cell(escape.plain(limit, 60), number=True),
        Cell(margin, number=True),
        Cell(n, number=True),
        cell(str(status)),
        cell(check.reason),
    )


def _outcome(view: View, most: int) -> tuple[Grid, ...]:
    """What is said of each run beside its checks, a column for each run."""
    judged = _judged(view)
    if not judged:
        return ()
    columns = [_outcome_of(run, verdict) for run, verdict in judged]
    rows = list(columns[0])[:most]
    body = tuple((cell(name), *(column[name] for column in columns)) for name in rows)
    return (Grid(("", *(run.label for run, _ in judged)), body),)


def _outcome_of(run: RunView, verdict: Verdict) -> dict[str, Cell]:
    gates = verdict.gates
    kept = run.record.tags.get(ledger.TAG_KEPT)
    return {
        "gates": cell(str(gates.status)),
        "Gate A": cell(str(gates.gate_a)),
        "Gate B": cell(str(gates.gate_b)),
        "tail": Cell(text.tail_sentence(gates)),
        "reproduced": Cell(
            text.reproduced(verdict.reproduction), cell(str(verdict.reproduction.status)).tone
        ),
        "certified": _certified(verdict),
        "explore milestone": _milestone(verdict.milestone),
        "explore budget used": _budget(verdict.milestone),
        "memory kept": cell(kept),
    }


def _certified(verdict: Verdict) -> Cell:
    found = verdict.certification
    return Cell("not opened") if found is None else Cell(text.certified(found), cell(str(found.status)).tone)


def _milestone(found: MilestoneReport | None) -> Cell:
    return (
        Cell("not flagged")
        if found is None
        else Cell(text.milestone_line(found), cell(str(found.status)).tone)
    )


def _budget(found: MilestoneReport | None) -> Cell:
    if found is None or found.run_index is None:
        return Cell("")
    spent = found.max_runs is not None and found.run_index > found.max_runs
    return Cell(f"run {found.run_index} of at most {found.max_runs}", "bad" if spent else "")


def _judged(view: View) -> list[tuple[RunView, Verdict]]:
    found = [(run, run.verdict()) for run in view.runs]
    return [(run, verdict) for run, verdict in found if verdict is not None]


def _runs(view: View, most: int) -> tuple[Grid, ...]:
    if not view.listed:
        return ()
    header = (
        "run",
        "phase",
        "status",
        "verdict",
        "Gate A",
        "Gate B",
        "ON gain",
        "OFF p99",
        "λ_off",
        "started",
    )
    newest = sorted(view.listed, key=lambda run: -run.start_time_ms)
    left = len(newest) - most
    about = f"the newest {most} of {len(newest)} runs" if left > 0 else ""
    return (Grid(header, tuple(map(_run, newest[:most])), about),)


def _run(run: RunRecord) -> tuple[Cell, ...]:
    started = datetime.fromtimestamp(run.start_time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M")
    tags = (ledger.TAG_VERDICT, ledger.TAG_GATE_A, ledger.TAG_GATE_B)
    numbers = (ledger.ON_GAIN, ledger.P99_STRESS, ledger.LAMBDA_OFF)
    return (
        Cell(escape.plain(f"{run.name} ({run.run_id[:8]})", 80), run=run.run_id),
        cell(run.tags.get(ledger.TAG_PHASE)),
        cell(run.status),
        *(cell(run.tags.get(tag)) for tag in tags),
        *(Cell(shown(run.metrics[name]) if name in run.metrics else "", number=True) for name in numbers),
        cell(started),
    )


def _warnings(view: View, most: int) -> tuple[Grid, ...]:
    found = [alert for run in view.runs for alert in view.alerts(run)]
    if not found:
        return ()
    header = ("level", "run", "rule", "first step", "value", "limit", "what it means", "acknowledged")
    body = tuple(
        (
            cell(alert.level),
            Cell(escape.plain(alert.run_name, 60), run=alert.run_id),
            cell(alert.rule),
            cell(alert.step),
            cell(alert.value),
            cell(alert.limit),
            cell(alert.says),
            cell(alert.note),
        )
        for alert in found[:most]
    )
    return (Grid(header, body),)


_BUILT_IN: Final[Mapping[str, Callable[[View, int], tuple[Grid, ...]]]] = {
    "checks": _checks,
    "outcome": _outcome,
    "runs": _runs,
    "warnings": _warnings,
}
_EMPTY: Final = {
    "checks": "Not judged yet: a run is judged when it has ended.",
    "outcome": "Not judged yet: a run is judged when it has ended.",
    "runs": "This experiment has no run: train one, e.g. with `cedkv --config configs/smoke.yaml --phase 3`.",
    "warnings": "No rule of any page warns about the runs looked at.",
}
