"""One verdict in four formats: an aligned table for a terminal, JSON, Markdown and JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as ET

from cedkv import ledger
from cedkv.core.verdict import Check, GateReport, Measured, MilestoneReport, Status
from cedkv.report import escape
from cedkv.report.tables import aligned, jsonable, markdown_table, shown

_HEADER = ("gate", "check", "value", "", "limit", "margin", "n", "status")
_RIGHT = (False, False, True, False, True, True, True, False)


def to_table(report: GateReport, milestone: MilestoneReport | None = None) -> str:
    """The verdict for a terminal, no line longer than its cells need, without colours or control characters."""
    name = escape.plain(report.run_name, 80)
    lines = [
        f"run {escape.plain(report.run_id, 80)}  {name}  phase {escape.plain(report.phase or '?', 8)}",
        "",
    ]
    lines += aligned([_HEADER, *map(cells, report.checks)], _RIGHT)
    lines += ["", *_verdict_lines(report), *_section("why", _reasons(report.checks))]
    lines += _section("reported, not judged", map(_reported_line, report.reported))
    tail = tail_sentence(report)
    lines += [f"  {tail}"] if tail else []
    lines += _section("notes", (escape.plain(note, 300) for note in report.notes))
    if milestone is not None:
        lines += ["", _milestone_line(milestone)]
        lines += (
            [f"  {line}" for line in aligned([_HEADER, *map(cells, milestone.checks)], _RIGHT)]
            if milestone.checks
            else []
        )
    return "\n".join(lines) + "\n"


def to_json(report: GateReport, milestone: MilestoneReport | None = None) -> str:
    """The verdict as one JSON object, ASCII only. A number that is not finite becomes ``null``."""
    return json.dumps(as_dict(report, milestone), indent=2) + "\n"


def to_markdown(report: GateReport, milestone: MilestoneReport | None = None) -> str:
    """The verdict as GitHub-flavoured Markdown; safe for hostile names and tags."""
    lines = [
        f"**{report.status.upper()}** · Gate A {report.gate_a} · Gate B {report.gate_b}"
        + (" (judged by its 95 % upper bound)" if report.certified else ""),
        "",
        *markdown_table(
            ("gate", "check", "value", "", "limit", "margin", "n", "status", "reason"),
            _markdown_rows(report.checks),
        ),
        "",
        "Reported, not judged:",
        "",
        *markdown_table(
            ("metric", "value", "n", "remark"), (_reported_row(item) for item in report.reported)
        ),
    ]
    tail = tail_sentence(report)
    lines += ["", escape.markdown(tail)] if tail else []
    lines += ["", *(f"- {escape.markdown(note, 300)}" for note in report.notes)] if report.notes else []
    if milestone is not None:
        lines += ["", escape.markdown(_milestone_line(milestone))]
        if milestone.checks:
            lines += ["", *markdown_table((*_HEADER, "reason"), _markdown_rows(milestone.checks))]
    return "\n".join(lines) + "\n"


def to_junit(report: GateReport, milestone: MilestoneReport | None = None) -> str:
    """The verdict as JUnit XML: a failed check is a ``failure``, an inconclusive one an ``error``.

    The milestone is a property of the suite and no test case: it never changes a gate result.
    """
    statuses = [check.status for check in report.checks]
    counts = {
        "tests": len(statuses),
        "failures": statuses.count(Status.FAIL),
        "errors": statuses.count(Status.INCONCLUSIVE),
    }
    numbers = {key: str(value) for key, value in counts.items()}
    suites = ET.Element("testsuites", {"name": "cedkv gate", **numbers})
    title = escape.plain(f"{report.run_name} {report.run_id}", 200)
    suite = ET.SubElement(suites, "testsuite", {"name": title, **numbers})
    properties = {
        "run_id": report.run_id,
        "status": report.status,
        "gate_a": report.gate_a,
        "gate_b": report.gate_b,
    }
    if milestone is not None:
        properties["milestone"] = milestone.status
    holder = ET.SubElement(suite, "properties")
    for key, value in properties.items():
        ET.SubElement(holder, "property", name=key, value=escape.plain(value))
    for check in report.checks:
        _junit_case(suite, check)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def as_dict(report: GateReport, milestone: MilestoneReport | None = None) -> dict[str, Any]:
    """The verdict as plain data: what ``to_json`` writes."""
    content = asdict(report)
    content["checks"] = [asdict(check) | {"margin": check.margin} for check in report.checks]
    content["milestone"] = None if milestone is None else asdict(milestone)
    cleaned: dict[str, Any] = jsonable({"schema": ledger.SCHEMA_VERSION, **content})
    return cleaned


def cells(check: Check) -> tuple[str, ...]:
    """One check as the cells of a table row: gate, name, value, operator, limit, margin, n, status."""
    margin = "" if check.margin is None else f"{check.margin:+.4g}"
    n = "" if check.n is None else str(check.n)
    value, limit = shown(check.value), shown(check.limit)
    return (check.group, check.name, value, check.operator, limit, margin, n, check.status)


def tail_sentence(report: GateReport) -> str:
    """How many stress prompts lie over the limit, and how many the bound allows; empty where that is not known."""
    if report.exceedances is None:
        return ""
    allowed = (
        "too few prompts for a 95 % bound"
        if report.allowed is None
        else f"the 95 % bound allows {report.allowed}"
    )
    return f"stress prompts over the limit: {report.exceedances} ({allowed})"


def _verdict_lines(report: GateReport) -> list[str]:
    judged = " (judged by its 95 % upper bound)" if report.certified else ""
    return [f"Gate A  {report.gate_a}", f"Gate B  {report.gate_b}{judged}", f"gates   {report.status}"]


def _reasons(checks: Iterable[Check]) -> list[str]:
    return [f"{check.name}: {escape.plain(check.reason, 300)}" for check in checks if check.reason]


def _section(title: str, lines: Iterable[str]) -> list[str]:
    kept = list(lines)
    return ["", f"{title}:", *(f"  {line}" for line in kept)] if kept else []


def _reported_line(item: Measured) -> str:
    problem = f"  ({escape.plain(item.problem, 200)})" if item.problem else ""
    return f"{item.name} {shown(item.value)}{problem}"


def _reported_row(item: Measured) -> tuple[str, ...]:
    n = "" if item.n is None else str(item.n)
    return (f"`{item.name}`", escape.markdown(shown(item.value)), n, escape.markdown(item.problem, 200))


def _markdown_rows(checks: Iterable[Check]) -> list[tuple[str, ...]]:
    return [_markdown_row(check) for check in checks]


def _markdown_row(check: Check) -> tuple[str, ...]:
    group, name, value, operator, *rest = cells(check)
    safe = (escape.markdown(value), f"`{operator}`", *map(escape.markdown, rest))
    return (group, f"`{name}`", *safe, escape.markdown(check.reason, 300))


def _milestone_line(milestone: MilestoneReport) -> str:
    index = (
        ""
        if milestone.run_index is None
        else f" (flagged run {milestone.run_index} of at most {milestone.max_runs})"
    )
    reason = f": {escape.plain(milestone.reason, 300)}" if milestone.reason else ""
    return f"explore milestone  {milestone.status}{index}{reason}"


def _junit_case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"gate.{check.group}", name=check.name, time="0")
    if check.status is not Status.PASS:
        kind = "failure" if check.status is Status.FAIL else "error"
        detail = " ".join(cells(check))
        ET.SubElement(case, kind, message=escape.plain(check.reason, 300), type=check.status).text = detail
