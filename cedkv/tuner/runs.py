"""Running one configuration of a study in this process; what runs with the same data and model share is made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Final

from cedkv.config import Config
from cedkv.core.hashing import content_hash
from cedkv.core.team import Team
from cedkv.train.clock import Clock
from cedkv.train.experiment import Experiment, prepare
from cedkv.train.main import run_training
from cedkv.train.trial import Trial, Watch, ignore

NOT_PREPARED: Final = frozenset(
    {"train", "loss", "thresholds", "reporting", "milestone", "certification", "runtime"}
)
"""Sections of ``phase3`` that nothing reads before the first step."""


class Runner:
    """Runs configurations, and keeps the preparations of the last ``kept`` kinds of them."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._prepared: OrderedDict[str, Experiment] = OrderedDict()

    def run(
        self,
        config: Config,
        phase: int,
        *,
        tags: Mapping[str, str],
        opened: Callable[[str], None],
        watch: Watch = ignore,
    ) -> str:
        """Train, or assemble the baseline (phase 2); the run's id.

        Raises:
            StoppedError: `watch` ended it. Its run is in the log as KILLED.
        """
        return run_training(
            config, phase=phase, progress=False, trial=Trial(tags, self._prepare, opened, watch)
        )

    def _prepare(self, config: Config, phase: int, clock: Clock, team: Team) -> Experiment:
        """An experiment as `prepare` makes it; its bank is the run's own, all else is only read."""
        key = what_is_prepared(config, phase)
        if key in self._prepared:
            self._prepared.move_to_end(key)
        else:
            while len(self._prepared) >= self._kept:  # before the next one needs the memory
                self._prepared.popitem(last=False)
            self._prepared[key] = prepare(config, phase, clock, team)
        found = self._prepared[key]
        return replace(found, config=config, bank=deepcopy(found.bank))


def what_is_prepared(config: Config, phase: int) -> str:
    """A hash of every setting that preparation reads."""
    read = config.model_dump(mode="json", exclude={"tracking", "checkpoint"})
    read["phase3"] = {name: value for name, value in read["phase3"].items() if name not in NOT_PREPARED}
    return content_hash([{"phase": phase, **read}])
