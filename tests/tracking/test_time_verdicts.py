"""scripts/time_verdicts.py at a small scale: the runs it makes are judged, and both ways of reading are timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cedkv.tracking.reader import list_runs, metric_history

SCRIPT = Path(__file__).parents[2] / "scripts" / "time_verdicts.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("time_verdicts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_run_is_judged_and_the_table_has_a_line_for_each_way(
    script: ModuleType, tmp_path: Path
) -> None:
    scale = script.Scale(runs=8, histories=2, templates=4, on=20, steps=5, metrics=3)
    lines = list(script.measure(scale, 3, tmp_path))
    assert lines[0].startswith(
        "8 runs, 2048 stress and 20 ON rows each, 2 with a history of 5 steps x 3 metrics;"
    )
    assert lines[1] == "verdicts: 4 pass, 4 fail"
    assert [line.split("|")[1].strip() for line in lines[3:]] == [
        "read through",
        "---",
        "the database file",
        "MLflow's client (3 runs, scaled)",
    ]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    runs = list_runs(script.EXPERIMENT, uri)
    assert len({run.run_id for run in runs}) == 8
    histories = [metric_history(run.run_id, ["train/metric_2"], uri)["train/metric_2"] for run in runs]
    assert [len(history) for history in histories].count(5) == 2


@pytest.mark.parametrize(("runs", "limit"), [(["--runs", "3"], 3), ([], 1000)])
def test_a_sample_larger_than_the_experiment_is_refused(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: list[str],
    limit: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["time_verdicts", *runs, "--sample", "1001"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert f"--sample 1001 is not from 1 to --runs {limit}" in capsys.readouterr().err
