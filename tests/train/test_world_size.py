"""One process and many compute the same run, bit for bit: launched for real, on CPUs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cedkv import ledger
from cedkv.config import dump_yaml
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowClient
from cedkv.tracking.reader import read_run
from cedkv.train.main import run_training
from cedkv.train.resume import resumption
from tests.train.test_resume import GATED, assert_same_run, interrupted

UNITS = ("phase3.train.batch_rows=2", "phase3.eval.batch_rows=4")
"""Passes so small that every process of four has some in every step."""
LAUNCH = Path(__file__).parents[2] / "configs" / "accelerate" / "cpu2.yaml"


def launch(file: Path, uri: str, processes: int, *more: str) -> subprocess.Popen[str]:
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    given = ["--config", str(file)] if "--resume" not in more else []
    return subprocess.Popen(
        [
            *(accelerate, "launch", "--config_file", str(LAUNCH), "--num_processes", str(processes)),
            *("--main_process_port", "0", "-m", "cedkv", *given, *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> str:
    """The id of the run that a launch has printed, once."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    (run_id,) = re.findall("^run ([0-9a-f]{32})$", out, re.MULTILINE)
    return run_id


@pytest.fixture
def reference(small_config, store_uri) -> tuple[Path, str]:
    """A configuration, and the run of it that this process makes alone."""
    config = small_config(*GATED, *UNITS)
    file = Path(store_uri.removeprefix("sqlite:///")).parent / "config.yaml"
    file.write_text(dump_yaml(config))
    tracking = config.tracking.model_copy(update={"uri": store_uri})
    return file, run_training(config.model_copy(update={"tracking": tracking}), phase=3, progress=False)


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4))])
def test_a_launch_of_any_size_computes_the_run_of_one_process(reference, store_uri, processes):
    """Four processes share three documents; five units of a step are not shared evenly by any of them."""
    file, alone = reference
    run_id = finished(launch(file, store_uri, processes))
    assert read_run(run_id, store_uri).tags[ledger.TAG_WORLD_SIZE] == str(processes)
    assert_same_run(alone, run_id, store_uri)
    assert len(MlflowClient(store_uri).search_runs(["1"])) == 2, "one run for a launch"


@pytest.mark.slow
def test_a_launch_is_stopped_and_goes_on(small_config, store_uri, tmp_path):
    config = small_config("phase3.train.steps=60", "checkpoint.every=20", *UNITS)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    process = launch(file, store_uri, 2)
    assert process.stderr is not None
    assert any("step 30/" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    (run,) = MlflowClient(store_uri).search_runs(["1"])
    assert run.info.status == "KILLED"
    going_on = launch(file, store_uri, 2, "--resume", run.info.run_id)
    assert finished(going_on) == run.info.run_id
    assert_same_run(run.info.run_id, finished(launch(file, store_uri, 1)), store_uri)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_in_order(small_config, store_uri, tmp_path):
    """As where one of them is out of memory: the run has failed, says why, and can be resumed."""
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(small_config("phase3.train.steps=2000", "checkpoint.every=5", *UNITS)))
    process = launch(file, store_uri, 3)
    assert process.stderr is not None
    assert any("step 10/" in line for line in process.stderr)
    psutil.Process(process.pid).children()[-1].kill()
    process.communicate(timeout=120)
    assert process.returncode != 0
    (run,) = MlflowClient(store_uri).search_runs(["1"])
    assert run.info.status in {"FAILED", "KILLED"}
    with resumption(run.info.run_id, store_uri, None, (), print, processes=3) as found:
        assert found.checkpoint.step >= 5


def test_another_number_of_processes_is_refused_unless_it_is_allowed(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", "checkpoint.every=5")
    run_id = interrupted(config, store_uri, monkeypatch, 7)
    with (
        pytest.raises(UserError, match=r"cedkv\.world_size: was 1, is 2"),
        resumption(run_id, store_uri, None, (), print, processes=2),
    ):
        pass
    with resumption(run_id, store_uri, None, ("cedkv.world_size",), print, processes=2) as found:
        assert found.changed == {"cedkv.world_size": ("1", "2")}


@pytest.mark.slow
def test_processes_that_were_given_different_things_are_refused(small_config, store_uri, tmp_path):
    for rank, seed in enumerate((0, 1)):
        config = small_config(f"phase3.train.seed={seed}")
        (tmp_path / f"{rank}.yaml").write_text(dump_yaml(config))
    script = tmp_path / "each.py"
    script.write_text(
        "import os, sys\nfrom cedkv.cli import main\n"
        f"sys.exit(main(['--config', f'{tmp_path}/' + os.environ['RANK'] + '.yaml']))\n"
    )
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    done = subprocess.run(
        [accelerate, "launch", "--config_file", str(LAUNCH), "--main_process_port", "0", str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"MLFLOW_TRACKING_URI": store_uri, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert "configuration" in done.stderr
    assert "give all of them the same" in done.stderr
    assert not MlflowClient(store_uri).search_runs(["0", "1"])
