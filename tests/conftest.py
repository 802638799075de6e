"""What every test folder may use; what only one needs lives in that folder's own conftest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from cedkv.core.hashing import content_hash
from cedkv.tracking.record import OnRow, RunRecord, StressRow

pytest_plugins = ["tests.tiny_models", "tests.small_runs"]

# A shared machine may take its time, and a failure seen by one developer must be seen by the next.
settings.register_profile("cedkv", deadline=None, derandomize=True)
settings.load_profile("cedkv")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        metavar="REASON",
        help="write the golden trajectories again, with the reason why they changed",
    )


def pytest_configure(config: pytest.Config) -> None:
    reason = config.getoption("--regenerate-golden")
    if reason is not None and not reason.strip():
        raise pytest.UsageError("--regenerate-golden needs a reason")


# -------------------------------------------------------------------------------------------------- tracking stores
@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database, made once per session (all pytest-xdist workers share it): it takes seconds."""
    from cedkv.tracking.store import prepare_store

    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):  # a worker's own folder lies in the session's
        folder = folder.parent
    path = folder / "store-template" / "mlflow.db"
    prepare_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_uri(store_template: Path, tmp_path: Path) -> str:
    """The URI of a fresh tracking store of the test's own, with its artifacts beside it."""
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copyfile(store_template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


# ------------------------------------------------------------------------------------- runs as the gates read them
_FIXED_STRESS: dict[str, Any] = {
    "size": 400,
    "seed": 3407,
    "sampling": "once_per_experiment",
    "definition": "phase2_stress_compatible",
}
_THRESHOLDS: dict[str, Any] = {
    "on_gain_min": 0.02,
    "off_delta_p99_max": 0.05,
    "delta_on_min": 0.01,
    "teacher_min_on_acc": 0.2,
    "rel_kl_to_teacher_max": 1.0,
    "teacher_cache_kl_max": 1e-4,
    "certified": False,
}


class RunFactory:
    """Runs whose log is complete and consistent, and passes every gate check unless told otherwise."""

    @staticmethod
    def stress_rows(deltas: Sequence[float]) -> tuple[StressRow, ...]:
        return tuple(
            StressRow(
                f"s{i}", f"Is {i} odd?", "counting", delta, f"d{i % 8}", delta / 2, f"d{i % 4}", "yes", "no"
            )
            for i, delta in enumerate(deltas)
        )

    @staticmethod
    def on_rows(
        *, base: int = 10, student: int = 60, teacher: int = 90, drift: float = 0.5, rel: float = 0.4
    ) -> tuple[OnRow, ...]:
        """`base`, `student`, `teacher`: how many of 100 prompts each gets right; `drift`: KL(student || base)."""
        return tuple(
            OnRow(
                id=f"o{i}",
                document=f"d{i % 8}",
                prompt=f"What is the code of {i}?",
                answer=f"{i}",
                tokens=2,
                base_correct=i < base,
                student_correct=i < student,
                teacher_correct=i < teacher,
                base_logp=-6.0,
                student_logp=-2.5,
                teacher_logp=-0.5,
                kl_teacher_student=rel,
                kl_teacher_base=1.0,
                kl_student_base=drift,
            )
            for i in range(100)
        )

    def run(
        self,
        run_id: str = "run-1",
        *,
        deltas: Sequence[float] | None = None,
        on: Sequence[OnRow] | None = None,
        phase: str = "3",
        start_time_ms: int = 1_700_000_000_000,
        tags: Mapping[str, str] | None = None,
        thresholds: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """A finished run; `deltas` are the stress KLs of its prompts, as many as it is configured to have."""
        stress = self.stress_rows([i * 1e-4 for i in range(400)] if deltas is None else deltas)
        on_table = self.on_rows() if on is None else tuple(on)
        fixed = {**_FIXED_STRESS, "size": len(stress)}
        stress_hash = content_hash({"id": r.id, "prompt": r.prompt, "family": r.family} for r in stress)
        on_hash = content_hash(
            {"id": r.id, "document": r.document, "prompt": r.prompt, "answer": r.answer, "split": "eval"}
            for r in on_table
        )
        return RunRecord(
            run_id=run_id,
            experiment_id="1",
            name=f"phase {phase}",
            status="FINISHED",
            lifecycle="active",
            start_time_ms=start_time_ms,
            end_time_ms=start_time_ms + 60_000,
            tags={
                "cedkv.schema": "1",
                "cedkv.phase": phase,
                "cedkv.source.off_delta_p99_stress": "fixed_stress_eval",
                "cedkv.model_fingerprint": "model-1",
                "cedkv.hash.documents": "documents-1",
                "cedkv.hash.on_eval": on_hash,
                "cedkv.hash.stress": stress_hash,
                **(tags or {}),
            },
            metrics={
                "null_injection_max_kl": 0.0,
                "teacher_cache_max_kl": 1e-6,
                **_on_scalars(on_table),
                **_stress_scalars(stress),
            },
            config={
                "phase3": {
                    "candidate": {"delimiter": {"mass_cap": 0.15}},
                    "eval": {"off_fixed_stress": fixed},
                    "milestone": {"explore": {"enabled": True, "flag": "phase3_explore", "max_runs": 5}},
                    "thresholds": {**_THRESHOLDS, **(thresholds or {})},
                }
            },
            data_spec={
                "schema": 1,
                "stress": {**fixed, "sha256": stress_hash},
                "on_eval": {"count": len(on_table), "sha256": on_hash},
            },
            stress_table=stress,
            on_table=on_table,
        )

    def with_config(self, record: RunRecord, path: str, value: object) -> RunRecord:
        """`value` at a dotted path of the resolved configuration; `...` takes the key away."""
        return replace(record, config=_changed(record.config, path, value))

    def with_spec(self, record: RunRecord, path: str, value: object) -> RunRecord:
        return replace(record, data_spec=_changed(record.data_spec, path, value))

    def with_metric(self, record: RunRecord, name: str, value: float | None) -> RunRecord:
        return replace(record, metrics=_one_changed(record.metrics, name, value))

    def with_tag(self, record: RunRecord, name: str, value: str | None) -> RunRecord:
        return replace(record, tags=_one_changed(record.tags, name, value))


@pytest.fixture(scope="session")
def runs() -> RunFactory:
    return RunFactory()


def _on_scalars(rows: Sequence[OnRow]) -> dict[str, float]:
    """What a run logs for these rows, computed with numpy and not with the code under test."""
    columns = {name: np.array([getattr(row, name) for row in rows], float) for name in _ON_COLUMNS}
    mean = {name: float(values.mean()) for name, values in columns.items()}
    gain, room = (mean[f"{who}_correct"] - mean["base_correct"] for who in ("student", "teacher"))
    return {
        "on_acc_base": mean["base_correct"],
        "on_acc_student": mean["student_correct"],
        "on_acc_teacher": mean["teacher_correct"],
        "on_gain": gain,
        "on_gain_recovered": gain / room if room else float("nan"),
        "on_logp_gain": mean["student_logp"] - mean["base_logp"],
        "delta_on_mean": mean["kl_student_base"],
        "rel_kl_to_teacher": mean["kl_teacher_student"] / mean["kl_teacher_base"],
    }


_ON_COLUMNS = (
    *("base_correct", "student_correct", "teacher_correct", "base_logp", "student_logp"),
    *("kl_student_base", "kl_teacher_student", "kl_teacher_base"),
)


def _stress_scalars(rows: Sequence[StressRow]) -> dict[str, float]:
    stress = np.sort([row.stress_delta for row in rows])
    typical = np.sort([row.typical for row in rows])
    place = ceil(99 * len(rows) / 100) - 1
    scalars = {
        "off_delta_p99_stress": stress[place],
        "off_delta_p99_typical": typical[place],
        "off_delta_mean_stress": stress.mean(),
        "off_delta_max_stress": stress[-1],
    }
    above = {400: 0, 2048: 12}.get(len(rows))  # prompts that the 95 % bound leaves above it
    if above is not None:
        scalars["off_delta_p99_upper"] = stress[-1 - above]
    return {name: float(value) for name, value in scalars.items()}


def _changed(tree: Mapping[str, Any] | None, path: str, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = deepcopy(dict(tree or {}))
    *above, last = path.split(".")
    inner = changed
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return changed


def _one_changed(values: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    kept = {key: item for key, item in values.items() if key != name}
    return kept if value is None else {**kept, name: value}
