from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cedkv.report.dashboard.view import RunView, View
from cedkv.tracking.record import RunRecord, Series


class Looks:
    """Runs and views as a dashboard has them, from plain values."""

    @staticmethod
    def run(
        history: Mapping[str, Mapping[int, float]] | None = None,
        *,
        rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        name: str = "first",
        run_id: str = "a" * 32,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        verdict: Any = None,
    ) -> RunView:
        series = {
            metric: Series(list(points), list(points.values())) for metric, points in (history or {}).items()
        }
        record = RunRecord(
            run_id=run_id,
            experiment_id="1",
            name=name,
            status="FINISHED",
            lifecycle="active",
            start_time_ms=1_700_000_000_000,
            tags={"cedkv.phase": "3", **(tags or {})},
            metrics={metric: held.values[-1] for metric, held in series.items()},
            config={"phase3": {"thresholds": {"off_delta_p99_max": 0.05}}} if config is None else config,
        )
        return RunView(record, series, rows=(rows or {}).get, verdict=lambda: verdict)

    @staticmethod
    def view(
        *runs: RunView,
        listed: Sequence[RunRecord] | None = None,
        baseline: RunView | None = None,
        others: Sequence[RunView] = (),
    ) -> View:
        return View(
            runs,
            [run.record for run in runs] if listed is None else listed,
            baseline=lambda _: baseline,
            alerts=lambda _: [],
            also=lambda ids: [run for run in others if run.record.run_id in ids],
        )


@pytest.fixture
def looks() -> type[Looks]:
    return Looks
