"""A small benchmark: three documents on a random model, prepared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cedkv.bench.quality.options import Options, Tuning
from cedkv.bench.quality.setting import Setting
from tests.small_runs import SMALL

SMOKE = Path(__file__).parents[3] / "configs" / "smoke.yaml"


@pytest.fixture(scope="session")
def small_options(small_model: Path) -> Callable[..., Options]:
    """Options of a small benchmark, logging to the store that is named."""

    def make(uri: str = "sqlite:///nowhere/mlflow.db", **changes: object) -> Options:
        given = {
            "config": str(SMOKE),
            "uri": uri,
            "seeds": (5,),
            "overrides": (f"model.name_or_path={small_model}", *SMALL),
            "tuning": Tuning(documents=2, stress=8),
        }
        return Options(**{**given, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def setting(small_options: Callable[..., Options]) -> Setting:
    """One seed of it; nobody may change its experiment."""
    return Setting(small_options(), 5, lambda _: None)
