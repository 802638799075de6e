"""Verdicts on many runs, a line each, in the formats of a single verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from cedkv import ledger
from cedkv.core.verdict import Measured, Status, Verdict
from cedkv.report import escape, text
from cedkv.report.tables import aligned, markdown_table, shown

_HEADER = (
    *("run", "name", "phase", "gates", "A", "B", "on_gain", "p99 stress", "upper bound", "reproduced"),
    *("milestone", "sealed set"),
)
_RIGHT = (*(False,) * 6, *(True,) * 3, *(False,) * 3)


def to_table(verdicts: Sequence[Verdict]) -> str:
    """A line for each run, for a terminal, and how many ended how."""
    rows = [[escape.plain(cell, 40) for cell in _cells(verdict)] for verdict in verdicts]
    return "\n".join([*aligned([_HEADER, *rows], _RIGHT), "", _counted(verdicts)]) + "\n"


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table row for each run; safe for hostile names."""
    rows = [[escape.markdown(cell, 40) for cell in _cells(verdict)] for verdict in verdicts]
    return "\n".join([*markdown_table(_HEADER, rows), "", _counted(verdicts)]) + "\n"


def to_json(verdicts: Sequence[Verdict]) -> str:
    """A list of what a single verdict is as JSON."""
    return json.dumps([text.as_dict(verdict) for verdict in verdicts], indent=2) + "\n"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    gates = verdict.gates
    beside = (verdict.milestone, verdict.certification)
    return (
        gates.run_id,
        gates.run_name,
        gates.phase or "?",
        gates.status,
        gates.gate_a,
        gates.gate_b,
        *(_value(verdict, name) for name in (ledger.ON_GAIN, ledger.P99_STRESS, ledger.P99_UPPER)),
        verdict.reproduction.status,
        *("-" if found is None else str(found.status) for found in beside),
    )


def _value(verdict: Verdict, name: str) -> str:
    """A number that a check judged or that is reported; one that the log does not prove is not shown."""
    checked = {
        check.name: check.value for check in verdict.gates.checks if check.status is not Status.INCONCLUSIVE
    }
    reported = {item.name: _proven(item) for item in verdict.gates.reported}
    return shown((reported | checked).get(name))


def _proven(item: Measured) -> float | None:
    return None if item.problem else item.value


def _counted(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.gates.status for verdict in verdicts)
    parts = [f"{counts[status]} {status}" for status in Status if counts[status]]
    return f"{len(verdicts)} runs" + (f": {', '.join(parts)}" if parts else "")
