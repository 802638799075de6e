"""The shape of a verdict: named checks, and the three ways each can end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Group = Literal["run", "A", "B", "milestone"]
Operator = Literal["=", "<=", ">="]


class Status(StrEnum):
    """``fail`` is proven by the log; ``inconclusive`` means that the log proves neither."""

    PASS = "pass"  # noqa: S105 - a verdict, not a secret
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verdict: ``value operator limit``, over ``n`` prompts, and why it ended as it did.

    ``group`` is the gate it belongs to; ``run`` checks count for both gates. Numbers are in the unit of the metric
    (see ``cedkv.ledger``); evidence such as hashes and tags is compared as text. ``reason`` is empty for a plain pass.
    """

    group: Group
    name: str
    value: float | str | None
    operator: Operator
    limit: float | str | None
    n: int | None
    status: Status
    reason: str = ""

    @property
    def margin(self) -> float | None:
        """Distance to the limit, positive on the passing side. None where either is not a finite number."""
        if not (_is_number(self.value) and _is_number(self.limit)) or self.operator == "=":
            return None
        distance = float(self.limit) - float(self.value)  # type: ignore[arg-type]
        return distance if self.operator == "<=" else -distance


def holds(value: float, operator: Operator, limit: float) -> bool:
    """Whether ``value operator limit``. At the limit every operator holds; NaN holds nowhere."""
    if operator == "<=":
        return value <= limit
    return value >= limit if operator == ">=" else value == limit


def combine(checks: Iterable[Check]) -> Status:
    """The verdict over several checks: a proven failure decides, then any gap in the evidence, else pass."""
    statuses = {check.status for check in checks}
    if Status.FAIL in statuses:
        return Status.FAIL
    return Status.PASS if statuses == {Status.PASS} else Status.INCONCLUSIVE


def _is_number(value: float | str | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
