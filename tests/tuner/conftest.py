"""Studies of runs that take a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cedkv.tuner import studies
from cedkv.tuner.scale import Scale
from cedkv.tuner.spec import Spec, check_space
from cedkv.tuner.worker import Found, Plan, Worker
from tests.small_runs import SMALL

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
SPACE: Mapping[str, Any] = {
    "space": {
        "phase3.train.lambda_off.dual.eta": {"low": 0.001, "high": 5.0, "log": True},
        "phase3.train.lr": {"low": 0.01, "high": 1.0, "log": True},
    },
    "objective": {"dual/lambda_std": 1.0, "off_delta_p99_stress": 0.1},
    "startup": 3,
    "pruning": {"keep": 1.0},
}


class Study(NamedTuple):
    """What came of a study, and where it is."""

    found: Found
    plan: Plan
    storage: str
    uri: str
    said: list[str]

    def trials(self, scale: int = 0) -> list[Any]:
        import optuna

        storage = studies.open_storage(self.storage)
        return optuna.load_study(storage=storage, study_name=self.plan.study_name(scale)).get_trials()


@pytest.fixture(scope="session")
def small_scale(small_model: Path) -> Callable[..., Scale]:
    """A scale of small runs, logged to a store."""

    def make(uri: str, *overrides: str) -> Scale:
        return Scale(SMOKE, (f"model.name_or_path={small_model}", *SMALL, *overrides), False, uri, "tuned")

    return make


@pytest.fixture(scope="session")
def run_study(small_scale: Callable[..., Scale]) -> Callable[..., Study]:
    """Runs a study to its end in this process."""

    def run(
        uri: str, *, trials: int, space: Mapping[str, Any] | None = None, scales: int = 1, **plan: Any
    ) -> Study:
        studies.quiet()
        spec = Spec.model_validate({**SPACE, **(space or {})})
        scale = small_scale(uri)
        current = check_space(spec, scale.config({}), scale.config)
        budget = studies.Budget(trials, plan.pop("patience", None))
        made = Plan("s", spec, "text of the space", (scale,) * scales, current, budget, **plan)
        storage = "sqlite:///" + str(Path(uri.removeprefix("sqlite:///")).with_name("tune.db"))
        said: list[str] = []
        found = Worker(made, studies.open_storage(storage), said.append).work()
        return Study(found, made, storage, uri, said)

    return run
