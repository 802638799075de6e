"""One verdict in four formats: an aligned table for a terminal, JSON, Markdown and JUnit XML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as ET

from cedkv import ledger
from cedkv.core.verdict import (
    Certification,
    Check,
    GateReport,
    Measured,
    MilestoneReport,
    Reproduced,
    Reproduction,
    Status,
    Verdict,
    WorstPrompt,
)
from cedkv.report import escape
from cedkv.report.tables import aligned, jsonable, markdown_table, shown

_HEADER = ("gate", "check", "value", "", "limit", "margin", "n", "status")
_RIGHT = (False, False, True, False, True, True, True, False)


def to_table(verdict: Verdict) -> str:
    """The verdict for a terminal, no line longer than its cells need, without colours or control characters."""
    report = verdict.gates
    name = escape.plain(report.run_name, 80)
    lines = [
        f"run {escape.plain(report.run_id, 80)}  {name}  phase {escape.plain(report.phase or '?', 8)}",
        "",
    ]
    lines += aligned([_HEADER, *map(cells, report.checks)], _RIGHT)
    lines += ["", *_verdict_lines(report), f"reproduced  {reproduced(verdict.reproduction)}"]
    lines += _section("why", _reasons(report.checks))
    lines += _section("reported, not judged", map(_reported_line, report.reported))
    tail = tail_sentence(report)
    lines += [f"  {tail}"] if tail else []
    lines += _section(f"worst {len(report.worst)} stress prompts", worst_lines(report.worst))
    lines += _section("notes", (escape.plain(note, 300) for note in report.notes))
    if verdict.certification is not None:
        lines += ["", f"sealed set  {certified(verdict.certification)}"]
    if verdict.milestone is not None:
        lines += ["", milestone_line(verdict.milestone)]
        checks = verdict.milestone.checks
        lines += [f"  {line}" for line in aligned([_HEADER, *map(cells, checks)], _RIGHT)] if checks else []
    return "\n".join(lines) + "\n"


def to_json(verdict: Verdict) -> str:
    """The verdict as one JSON object, ASCII only. A number that is not finite becomes ``null``."""
    return json.dumps(as_dict(verdict), indent=2) + "\n"


def to_markdown(verdict: Verdict) -> str:
    """The verdict as GitHub-flavoured Markdown; safe for hostile names and tags."""
    report = verdict.gates
    lines = [
        f"**{report.status.upper()}** · Gate A {report.gate_a} · Gate B {report.gate_b}"
        + (" (judged by its 95 % upper bound)" if report.certified else "")
        + f" · reproduced: {escape.markdown(reproduced(verdict.reproduction))}",
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
    if verdict.certification is not None:
        lines += ["", f"Sealed set: {escape.markdown(certified(verdict.certification))}"]
    if verdict.milestone is not None:
        lines += ["", escape.markdown(milestone_line(verdict.milestone))]
        if verdict.milestone.checks:
            lines += ["", *markdown_table((*_HEADER, "reason"), _markdown_rows(verdict.milestone.checks))]
    return "\n".join(lines) + "\n"


def to_junit(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as JUnit XML, a suite each: a failed check is a ``failure``, an inconclusive one an ``error``.

    Milestone, reproduction and certification are properties of the suite and no test cases: they never change a gate
    result.
    """
    suites = ET.Element("testsuites", {"name": "cedkv gate"})
    totals: Counter[str] = Counter()
    for verdict in verdicts:
        counts = _junit_suite(suites, verdict)
        totals.update(counts)
    for key in ("tests", "failures", "errors"):
        suites.set(key, str(totals[key]))
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _junit_suite(suites: ET.Element, verdict: Verdict) -> dict[str, int]:
    report = verdict.gates
    statuses = [check.status for check in report.checks]
    counts = {
        "tests": len(statuses),
        "failures": statuses.count(Status.FAIL),
        "errors": statuses.count(Status.INCONCLUSIVE),
    }
    title = escape.plain(f"{report.run_name} {report.run_id}", 200)
    numbers = {key: str(value) for key, value in counts.items()}
    suite = ET.SubElement(suites, "testsuite", {"name": title, **numbers})
    properties = {
        "run_id": report.run_id,
        "status": report.status,
        "gate_a": report.gate_a,
        "gate_b": report.gate_b,
        "reproduced": reproduced(verdict.reproduction),
    }
    if verdict.milestone is not None:
        properties["milestone"] = verdict.milestone.status
    if verdict.certification is not None:
        properties["certified"] = verdict.certification.status
    holder = ET.SubElement(suite, "properties")
    for key, value in properties.items():
        ET.SubElement(holder, "property", name=key, value=escape.plain(value))
    for check in report.checks:
        _junit_case(suite, check)
    return counts


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain data: what ``to_json`` writes."""
    report = verdict.gates
    content = asdict(report)
    content["checks"] = [asdict(check) | {"margin": check.margin} for check in report.checks]
    for name in ("milestone", "reproduction", "certification"):
        beside = getattr(verdict, name)
        content[name] = None if beside is None else asdict(beside)
    cleaned: dict[str, Any] = jsonable({"schema": ledger.SCHEMA_VERSION, **content})
    return cleaned


def reproduced(reproduction: Reproduction) -> str:
    """Whether repeats agree, as the gate report says it: ``yes (run ...)``, ``no (run ...)`` or ``not tried``."""
    detail = reproduction.reason
    if reproduction.status is Reproduced.YES:
        more = len(reproduction.runs) - 1
        detail = f"run {reproduction.runs[-1]}" + (f" and {more} more" if more else "")
    return f"{reproduction.status} ({escape.plain(detail, 160)})" if detail else str(reproduction.status)


def certified(found: Certification) -> str:
    """What the opening of the sealed set says, in a sentence."""
    if found.status is Status.INCONCLUSIVE:
        return f"inconclusive: {escape.plain(found.reason, 300)}"
    return (
        f"{found.status}: {found.exceedances} of {found.n} prompts over {found.tau:g} nats; with confidence "
        f"{found.confidence:g} at most {found.upper_rate:.4g} of such prompts are (limit {found.max_rate:g}), and their "
        f"p99 is at most {found.p99_upper:.4g} nats; attempt {found.attempt} of {found.max_attempts}, "
        f"set {found.set_sha256[:12]}"
    )


def worst_lines(prompts: Sequence[WorstPrompt], most: int = 10) -> list[str]:
    """The worst prompts for a terminal, at most ``most`` of them: KL, state, what base and student say, prompt."""
    shown_prompts = prompts[:most]
    rows = [
        (
            shown(prompt.stress_delta),
            *(escape.plain(text, 24) for text in (prompt.family, prompt.state)),
            f"{escape.plain(prompt.base_top, 16)} -> {escape.plain(prompt.student_top, 16)}",
            escape.plain(prompt.prompt, 72),
        )
        for prompt in shown_prompts
    ]
    if not rows:
        return []
    header = ("KL", "family", "state", "base -> student", "prompt")
    left = len(prompts) - len(shown_prompts)
    lines = aligned([header, *rows], (True, False, False, False, False))
    return lines + ([f"... and {left} more (--format json shows all)"] if left else [])


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


def milestone_line(milestone: MilestoneReport) -> str:
    """How the explore milestone ended, in a sentence."""
    index = (
        ""
        if milestone.run_index is None
        else f" (flagged run {milestone.run_index} of at most {milestone.max_runs})"
    )
    reason = f": {escape.plain(milestone.reason, 300)}" if milestone.reason else ""
    interval = ""
    if milestone.reduction_interval is not None:
        low, high = milestone.reduction_interval
        interval = f"; p99 reduction {low:.1%} to {high:.1%} (95 %, paired bootstrap)"
    return f"explore milestone  {milestone.status}{index}{reason}{interval}"


def _junit_case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"gate.{check.group}", name=check.name, time="0")
    if check.status is not Status.PASS:
        kind = "failure" if check.status is Status.FAIL else "error"
        detail = " ".join(cells(check))
        ET.SubElement(case, kind, message=escape.plain(check.reason, 300), type=check.status).text = detail
