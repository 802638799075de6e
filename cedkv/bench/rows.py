"""What the sections of a measurement give: rows that say what was computed and whether it was right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cedkv.bench.timing import Spread

TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far two ways to compute a KL may differ (nats, relative to a KL over one nat): the same sums in another order.

Ten times what a run allows its shortcut on a probe of eight prompts, because this is the largest of many thousand pairs.
"""

PROBE_TOLERANCE: Mapping[str, float] = {dtype: limit / 10 for dtype, limit in TOLERANCE.items()}
"""What a shortcut may differ by on a probe, before it is chosen."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a row's results compare with an independent computation of the same thing."""

    against: str
    largest: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the largest difference is within the tolerance; one that is no number is not."""
        return math.isfinite(self.largest) and self.largest <= self.tolerance


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a quantity with its spread, what was computed, and the check of its results."""

    section: str
    name: str
    computed: str
    unit: str
    value: Spread
    agreement: Agreement | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """False only where a check failed."""
        return self.agreement is None or self.agreement.holds


@dataclass(frozen=True, slots=True)
class Section:
    """A table with what a reader has to know, and the numbers that go into the summary."""

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    summary: Mapping[str, float] = field(default_factory=dict)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Of two tables of KLs in nats, relative where a KL is over one nat: a KL of 17 nats has no five digits to spare."""
    return float(((found - expected).abs() / expected.clamp_min(1.0)).max())
