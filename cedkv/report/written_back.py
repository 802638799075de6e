"""What a verdict leaves on its run: tags to filter by, metrics to compare by, a description to read."""

from __future__ import annotations

import math

from cedkv import ledger
from cedkv.core.verdict import Status, Verdict
from cedkv.report import escape, text
from cedkv.report.tables import markdown_table, shown
from cedkv.tracking.names import MAX_TAG

BEGIN, END = "<!-- cedkv verdict -->", "<!-- end of cedkv verdict -->"
"""The part of a run's description that is ours; what people write around it stays."""

_PROMPTS = 5
_PROMPT = 120  # characters
_REASON = 160


def tags(verdict: Verdict) -> dict[str, str]:
    """Results by tag; milestone and certification only where there is one."""
    gates = verdict.gates
    found = {
        ledger.TAG_VERDICT: gates.status,
        ledger.TAG_GATE_A: gates.gate_a,
        ledger.TAG_GATE_B: gates.gate_b,
        ledger.TAG_REPRODUCED: verdict.reproduction.status,
    }
    if verdict.milestone is not None:
        found[ledger.TAG_MILESTONE] = verdict.milestone.status
    if verdict.certification is not None:
        found[ledger.TAG_CERTIFIED] = verdict.certification.status
    return {name: str(status) for name, status in found.items()}


def metrics(verdict: Verdict) -> dict[str, float]:
    """1 or 0 for each gate, and the margin of every check that has one and could be judged."""
    gates = verdict.gates
    return {
        ledger.GATE_A_PASSED: float(gates.gate_a is Status.PASS),
        ledger.GATE_B_PASSED: float(gates.gate_b is Status.PASS),
        **{
            ledger.GATE_MARGIN_PREFIX + check.name: check.margin
            for check in gates.checks
            if check.margin is not None and math.isfinite(check.margin)
        },
    }


def description(verdict: Verdict, before: str = "") -> str:
    """The run's description in Markdown, our part of ``before`` replaced, or set in front of it.

    What people wrote is never cut: where both do not fit a tag, ours is the result alone, or nothing.
    """
    for ours in (_description(verdict), _result(verdict)):
        whole = _placed(f"{BEGIN}\n{ours}\n{END}", before)
        if len(whole) <= MAX_TAG:
            return whole
    return before


def _placed(ours: str, before: str) -> str:
    start, end = before.find(BEGIN), before.find(END)
    if 0 <= start < end:
        return before[:start] + ours + before[end + len(END) :]
    return f"{ours}\n\n{before}" if before.strip() else ours


def _result(verdict: Verdict) -> str:
    gates = verdict.gates
    told = escape.markdown(text.reproduced(verdict.reproduction))
    return f"**{gates.status.upper()}** · Gate A {gates.gate_a} · Gate B {gates.gate_b} · reproduced: {told}"


def _description(verdict: Verdict) -> str:
    gates = verdict.gates
    rows = [
        (check.group, f"`{check.name}`", *map(escape.markdown, text.cells(check)[2:6]), str(check.status))
        for check in gates.checks
        if check.margin is not None or check.status is not Status.PASS
    ]
    lines = [
        _result(verdict),
        "",
        *markdown_table(("gate", "check", "value", "", "limit", "margin", "status"), rows),
    ]
    reasons = [check for check in gates.checks if check.status is not Status.PASS and check.reason]
    lines += ["", *(f"- `{check.name}`: {escape.markdown(check.reason, _REASON)}" for check in reasons[:8])]
    if verdict.certification is not None:
        lines += ["", f"Sealed set: {escape.markdown(text.certified(verdict.certification))}"]
    if verdict.milestone is not None:
        lines += ["", escape.markdown(text.milestone_line(verdict.milestone))]
    lines += ["", *_worst(verdict)]
    lines += [
        "",
        (
            f"All of it: artifacts `{ledger.GATE_REPORT_MARKDOWN}` (verdict), `{ledger.REPORT_MARKDOWN}` (run), "
            f"`{ledger.TABLE_STRESS}` and `{ledger.TABLE_ON}` (every prompt)."
        ),
    ]
    return "\n".join(lines)


def _worst(verdict: Verdict) -> list[str]:
    rows = [
        (
            shown(prompt.stress_delta),
            escape.markdown(prompt.prompt, _PROMPT),
            *(
                escape.markdown(word, 24)
                for word in (prompt.family, prompt.state, prompt.base_top, prompt.student_top)
            ),
        )
        for prompt in verdict.gates.worst[:_PROMPTS]
    ]
    if not rows:
        return []
    return markdown_table(("KL (nats)", "worst prompts", "family", "state", "base", "student"), rows)
