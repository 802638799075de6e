"""One logged run as plain data: what the gates and the reports read, whatever store it came from.

Pure: no mlflow, no I/O. A reader fills these in; a number that the log holds as JSON ``null`` (not finite) arrives
here as NaN, and an artifact that is absent or unreadable arrives as ``None`` with a line in ``problems``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cedkv import ledger

Tag = tuple[str, str]
"""Name and value of a run's tag."""


class MetricPoint(NamedTuple):
    """One logged value of a metric."""

    step: int
    value: float
    timestamp_ms: int


@dataclass(slots=True)
class Series:
    """One metric of one run, in the order it was logged. A value that was not finite is NaN."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def points(self) -> tuple[list[int], list[float]]:
        """Steps and values, as many of one as of the other, though another thread may be adding a point."""
        count = min(len(self.steps), len(self.values))
        return self.steps[:count], self.values[:count]


@dataclass(frozen=True, slots=True)
class StressRow:
    """One prompt of the fixed stress set, measured against every state (``tables/off_stress.jsonl``).

    ``stress_delta`` is the largest KL(student || base) over the states, in nats, and ``state`` the document id that
    reaches it; ``typical`` is the KL with the one state that round-robin assigns to the prompt (``typical_state``).
    """

    id: str
    prompt: str
    family: str
    stress_delta: float
    state: str
    typical: float
    typical_state: str
    base_top: str
    student_top: str


@dataclass(frozen=True, slots=True)
class OnRow:
    """One ON evaluation prompt (``tables/on_eval.jsonl``).

    ``*_correct``: teacher-forced greedy decoding gets all ``tokens`` answer tokens right. ``*_logp``: log-probability
    of the whole answer, summed over its tokens, in nats. ``kl_*``: mean over the answer tokens, in nats per token.
    """

    id: str
    document: str
    prompt: str
    answer: str
    tokens: int
    base_correct: bool
    student_correct: bool
    teacher_correct: bool
    base_logp: float
    student_logp: float
    teacher_logp: float
    kl_teacher_student: float
    kl_teacher_base: float
    kl_student_base: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run of the tracking store. ``metrics`` holds last values (NaN kept), times are milliseconds since the epoch.

    ``config`` is the parsed ``config/resolved.yaml``; ``data_spec`` the parsed ``data/spec.json``; ``certificate``
    what an opening of the sealed set logged. Records made only to
    be counted or searched (a listing of an experiment) may leave the artifacts out: they are ``None`` then.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    lifecycle: str
    start_time_ms: int
    end_time_ms: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    data_spec: Mapping[str, Any] | None = None
    stress_table: tuple[StressRow, ...] | None = None
    on_table: tuple[OnRow, ...] | None = None
    certificate: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_study(self) -> bool:
        """Whether this is the run of a study (`cedkv tune`), which holds trials and trains nothing itself."""
        return ledger.TAG_STUDY in self.tags and ledger.TAG_TRIAL not in self.tags
