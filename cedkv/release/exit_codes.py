"""What ``cedkv gate`` tells a release job. 1 (crash) and 2 (usage or configuration) are given before any verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cedkv.core.verdict import GateReport, MilestoneReport, MilestoneStatus, Status

PASS: Final = 0
CRASH: Final = 1
USAGE: Final = 2
GATE_FAILED: Final = 10
INCONCLUSIVE: Final = 11
BUDGET_SPENT: Final = 12

_OF_STATUS = {Status.PASS: PASS, Status.FAIL: GATE_FAILED, Status.INCONCLUSIVE: INCONCLUSIVE}


def of_status(status: Status) -> int:
    """Exit code of one status."""
    return _OF_STATUS[status]


def exit_code(report: GateReport, milestone: MilestoneReport | None = None) -> int:
    """Exit code of one verdict. ``milestone`` only when it was asked for (``--milestone``).

    A spent explore budget takes the place of a gate that did not pass; a gate that passed stays a pass, as a milestone
    never changes a gate result.
    """
    code = of_status(report.status)
    spent = milestone is not None and milestone.status is MilestoneStatus.BUDGET_SPENT
    return BUDGET_SPENT if spent and code != PASS else code


def exit_code_of_all(codes: Iterable[int]) -> int:
    """One code for several verdicts: the first failure in the order failed, inconclusive, budget spent; else pass."""
    found = set(codes)
    return next((code for code in (GATE_FAILED, INCONCLUSIVE, BUDGET_SPENT) if code in found), PASS)
