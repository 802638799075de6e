"""What a method came to on one seed, and how it is kept on disk so that a benchmark goes on where it was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cedkv.core.hashing import content_hash
from cedkv.release.measure import on_metrics, stress_metrics
from cedkv.tracking.record import OnRow, StressRow

VERSION = 1
"""Raised where a method computes something else than before: what was kept by an older version is computed anew."""


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison with an independent computation: the largest difference and what is allowed."""

    against: str
    largest: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance; a difference that is no number is not."""
        return self.largest <= self.tolerance


@dataclass(frozen=True, slots=True)
class Result:
    """A method on the documents of one seed.

    Args:
        on, stress: its tables, as a run logs them.
        bytes: stored per document, in the model's type.
        seconds: to build all documents, beyond what every method is given (model, data, the teacher's answers).
        notes: what a reader has to know; `absent` says why there are no tables.
        facts: settings that were found, e.g. a learning rate or the id of a run.
    """

    method: str
    seed: int
    on: tuple[OnRow, ...] = ()
    stress: tuple[StressRow, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Every scalar that the tables determine, by the functions that judge runs; empty where there are none."""
        return {} if self.absent else on_metrics(self.on) | stress_metrics(self.stress)

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


class Kept:
    """Results in a folder, one file each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, seed: int, method: str, settings: Mapping[str, Any]) -> Path:
        """Where the result of a method lies; its settings are part of the name."""
        key = content_hash([{"version": VERSION, "seed": seed, "method": method, **settings}])
        return self._folder / f"{seed}-{method}-{key[:12]}.json"

    def read(self, path: Path) -> dict[str, Any] | None:
        """What was written there; None where nothing was."""
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write all of it under another name first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(content))
        unfinished.replace(path)


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON can hold it. KLs are finite or the run fails before; NaN passes as Python writes it."""
    return asdict(result)


def from_json(content: Mapping[str, Any]) -> Result:
    """The result that `as_json` wrote."""
    return Result(
        **{
            **content,
            "on": tuple(OnRow(**row) for row in content["on"]),
            "stress": tuple(StressRow(**row) for row in content["stress"]),
            "notes": tuple(content["notes"]),
            "checks": tuple(Check(**check) for check in content["checks"]),
        }
    )


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
