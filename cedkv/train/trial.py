"""What a run is told when it is one trial of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cedkv.config import Config
    from cedkv.core.team import Team
    from cedkv.train.clock import Clock
    from cedkv.train.experiment import Experiment

Watch = Callable[[int, float, float], None]
"""Told at every eval tick: step, p99 over the fixed stress set and ON loss of a fixed sample, both in nats."""


def ignore(_step: int, _p99: float, _on_loss: float) -> None:
    """Watch nothing."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A run that belongs to a study.

    Args:
        tags: what ties it to the study.
        prepare: makes its experiment, as `experiment.prepare` does.
        opened: told the run's id as soon as it has one.
        watch: told every eval tick; raises `StoppedError` to end the run there.
        warn: told what a run says to whoever looks at it; all of it is in the log as well.
    """

    tags: Mapping[str, str]
    prepare: Callable[[Config, int, Clock, Team], Experiment]
    opened: Callable[[str], None]
    watch: Watch
    warn: Callable[[str], None] = lambda _: None
