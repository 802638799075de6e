"""A configuration file as a study runs it, with some keys changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cedkv.config import Config, load
from cedkv.tuner.spec import Scalar


@dataclass(frozen=True, slots=True)
class Scale:
    """A configuration file with its overrides, as a study runs it."""

    file: Path
    overrides: tuple[str, ...]
    strict_hf: bool
    uri: str
    experiment: str

    def written(self, changes: Mapping[str, Scalar]) -> tuple[str, ...]:
        """The overrides and these changes, as ``--set`` takes them."""
        return (*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in changes.items()))

    def config(
        self, changes: Mapping[str, Scalar], seed: int = 0, *, phase: int = 3, name: str | None = None
    ) -> Config:
        """The configuration with some keys changed, `seed` further than its own seeds of data and training.

        Raises:
            UserError: it is not valid.
        """
        wanted = self.written(changes)
        own = load(self.file, wanted, phase=phase, strict_hf=self.strict_hf, env=os.environ).config
        seeds = (f"data.seed={own.data.seed + seed}", f"phase3.train.seed={own.phase3.train.seed + seed}")
        tracking = {"uri": self.uri, "experiment": self.experiment, "run_name": name}
        places = tuple(f"tracking.{key}={json.dumps(value)}" for key, value in tracking.items())
        return load(
            self.file, (*wanted, *seeds, *places), phase=phase, strict_hf=self.strict_hf, env=os.environ
        ).config
