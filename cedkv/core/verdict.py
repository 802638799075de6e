"""The shape of a verdict: named checks, the ways each can end, and the reports that hold them. Plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeGuard

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
        value, limit = self.value, self.limit
        if self.operator == "=" or not (_is_number(value) and _is_number(limit)):
            return None
        return limit - value if self.operator == "<=" else value - limit


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric as far as the log proves it: usable when ``problem`` is empty. ``n``: prompts behind it, if any."""

    name: str
    value: float | None
    n: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WorstPrompt:
    """One of the stress prompts that drift most: under which state, how far (nats), and what is said next."""

    id: str
    prompt: str
    family: str
    state: str
    stress_delta: float
    base_top: str
    student_top: str


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict on one run. ``status`` is pass only when both gates pass.

    ``exceedances`` counts stress prompts over the Gate B limit; ``allowed`` is how many the 95 % bound tolerates.
    ``worst``: the worst 1 % of the stress prompts, rounded up, the hardest first.
    """

    run_id: str
    run_name: str
    experiment_id: str
    phase: str | None
    gate_a: Status
    gate_b: Status
    status: Status
    certified: bool
    checks: tuple[Check, ...]
    reported: tuple[Measured, ...]
    exceedances: int | None
    allowed: int | None
    worst: tuple[WorstPrompt, ...]
    notes: tuple[str, ...]

    def of(self, group: Group) -> tuple[Check, ...]:
        """The checks of one gate, or the evidence that counts for both (``run``)."""
        return tuple(check for check in self.checks if check.group == group)


class MilestoneStatus(StrEnum):
    """How the milestone ended. Only ``pass`` is a pass."""

    PASS = "pass"  # noqa: S105 - a verdict, not a secret
    FAIL = "fail"
    NOT_JUDGED = "not judged"
    BUDGET_SPENT = "budget spent"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class MilestoneReport:
    """The verdict, the run's index among the flagged runs of its experiment (from 1), and what it was held against.

    ``reduction_interval``: 95 % interval of the p99's reduction, by a paired bootstrap over prompts; never judged.
    """

    run_id: str
    status: MilestoneStatus
    reason: str
    run_index: int | None = None
    max_runs: int | None = None
    baseline_run_id: str | None = None
    checks: tuple[Check, ...] = ()
    reduction_interval: tuple[float, float] | None = None


class Reproduced(StrEnum):
    """Whether other runs of the same configuration ended with the same gate results."""

    YES = "yes"
    NO = "no"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """``runs``: the repeats that decided it, by start time. ``reason`` says what is missing or what disagrees."""

    status: Reproduced
    runs: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Certification:
    """What one opening of the sealed set says, and whether the log proves it.

    With confidence ``confidence`` at most ``upper_rate`` of such prompts drift by more than ``tau`` nats: ``exceedances``
    of ``n`` did. ``p99_upper`` (nats) is the same statement as a bound on the p99. ``attempt`` counts the openings of the
    experiment, ``max_attempts`` of them share the error probability.
    """

    status: Status
    reason: str
    n: int
    exceedances: int
    tau: float
    confidence: float
    max_rate: float
    upper_rate: float
    p99_upper: float
    set_sha256: str
    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that is said of one run. Only ``gates`` decides whether it passes; nothing beside it changes that."""

    gates: GateReport
    milestone: MilestoneReport | None = None
    reproduction: Reproduction = Reproduction(Reproduced.NOT_TRIED)
    certification: Certification | None = None


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


def _is_number(value: float | str | None) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
