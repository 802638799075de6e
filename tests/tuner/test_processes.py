"""Workers as they are started: processes of their own on one study, killed, launched, told nonsense."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cedkv import ledger
from cedkv.cli import main
from cedkv.tracking.reader import list_runs, read_run
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "configs" / "smoke.yaml")
SPACE = """
space:
  phase3.train.lambda_off.dual.eta: {low: 0.001, high: 5.0, log: true}
objective: {dual/lambda_std: 1.0, off_delta_p99_stress: 0.1}
pruning: {keep: 1.0}
"""
IMPATIENT = """
import sys
from cedkv.tuner import studies
studies.HEARTBEAT_S, studies.GRACE_S = 1, 4
from cedkv.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def arguments(tmp_path: Path, small_model: Path, store_uri: str) -> list[str]:
    """`cedkv tune` of small runs: its arguments."""
    (tmp_path / "space.yaml").write_text(SPACE)
    sets = [f"--set={override}" for override in (f"model.name_or_path={small_model}", *SMALL)]
    places = ["--tracking-uri", store_uri, "--out", str(tmp_path / "best.yaml")]
    return [
        "tune",
        "--config",
        SMOKE,
        "--space",
        str(tmp_path / "space.yaml"),
        "--study",
        "s",
        *places,
        *sets,
    ]


def started(*command: str) -> subprocess.Popen[str]:
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet
    )


def trials(store_uri: str) -> list[optuna.trial.FrozenTrial]:
    file = Path(store_uri.removeprefix("sqlite:///")).with_name("tune.db")
    return optuna.load_study(storage=f"sqlite:///{file}", study_name="s").get_trials()


@pytest.mark.slow
def test_two_workers_share_a_study(arguments, store_uri, tmp_path):
    workers = [started(sys.executable, "-m", "cedkv", *arguments, "--trials", "6") for _ in range(2)]
    told = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    assert not any("Traceback" in err or "Warning" in err for _, err in told)
    found = trials(store_uri)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert all(
        re.search(r"^cedkv: trial \d at smoke: ", err, re.MULTILINE) for _, err in told
    )  # each did some
    (run_id,) = {re.findall(r"run ([0-9a-f]{32})", out)[0] for out, _ in told}
    runs = list_runs("cedkv-tune", store_uri)
    assert [run.run_id for run in runs if run.is_study] == [run_id]
    count = Counter(run.tags[ledger.TAG_TRIAL] for run in runs if not run.is_study)
    assert [count[str(number)] for number in range(6)] == [1] * 6
    assert (tmp_path / "best.yaml").exists()


@pytest.mark.slow
def test_a_launch_is_as_many_workers(arguments, store_uri):
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    file = ROOT / "configs" / "accelerate" / "cpu2.yaml"
    launch = started(
        *(accelerate, "launch", "--config_file", str(file), "--main_process_port", "0", "-m", "cedkv"),
        *(*arguments, "--trials", "4"),
    )
    out, err = launch.communicate(timeout=240)
    assert launch.returncode == 0, err
    assert len(re.findall("^study 's'", out, re.MULTILINE)) == 1
    assert [trial.state for trial in trials(store_uri)] == [TrialState.COMPLETE] * 4
    runs = [run for run in list_runs("cedkv-tune", store_uri) if not run.is_study]
    assert {run.tags[ledger.TAG_WORLD_SIZE] for run in runs} == {"1"}


@pytest.mark.slow
def test_the_trial_of_a_worker_that_is_killed_is_run_by_another(arguments, store_uri):
    command = (sys.executable, "-c", IMPATIENT, *arguments, "--trials", "3")
    first = started(*command, "--set", "phase3.train.steps=4000")
    deadline = time.monotonic() + 60
    while not any(run.tags.get(ledger.TAG_TRIAL) == "0" for run in _runs(store_uri)):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    second = started(
        *command, "--set", "phase3.train.steps=4000", "--set", "phase3.train.steps=4000", "--minutes", "5"
    )
    try:
        deadline = time.monotonic() + 60
        while (
            len(trials(store_uri)) < 2
        ):  # the dead one's trial waits again once its heart has stopped for 4 s
            assert time.monotonic() < deadline
            time.sleep(0.2)
        dead, again = trials(store_uri)[:2]
        assert dead.state is TrialState.FAIL
        assert again.params == dead.params
        while not any(run.tags.get(ledger.TAG_TRIAL) == "1" for run in _runs(store_uri)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        second.send_signal(signal.SIGTERM)
        out, err = second.communicate(timeout=60)
    assert second.returncode == 143, (out, err)
    assert (
        trials(store_uri)[-1].state is TrialState.WAITING
    )  # a worker that is told to end leaves its trial to others
    assert _runs(store_uri)[-1].status == "KILLED"


def _runs(store_uri):
    from cedkv.core.errors import UserError

    try:
        return list_runs("cedkv-tune", store_uri)
    except UserError:
        return []


def test_one_command_finds_and_writes_a_configuration(arguments, store_uri, tmp_path, capsys):
    assert main([*arguments, "--trials", "2"]) == 0
    out = capsys.readouterr().out
    run_id = re.findall(r"run ([0-9a-f]{32}): 2 trials are run", out)[0]
    assert read_run(run_id, store_uri).status == "FINISHED"
    assert main(["config", "validate", str(tmp_path / "best.yaml")]) == 0
    capsys.readouterr()
    assert (
        main(["gate", "--all", "--experiment", "cedkv-tune", "--tracking-uri", store_uri, "--exit-zero"]) == 0
    )
    assert run_id[:8] not in capsys.readouterr().out  # a study is no run to judge


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--trials", "0"], "not a whole number"),
        (["--minutes", "nan"], "not a number of minutes over 0"),
        (["--storage", "postgresql://me:secret@host/db"], "holds a password"),
        (["--experiment", "a/../b\n"], "experiment"),
        (["--then", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_and_leaves_nothing(arguments, change, told, store_uri, capsys):
    try:
        status = main([*arguments, *change])
    except SystemExit as left:
        status = left.code
    error = capsys.readouterr().err
    assert status == 2
    assert told in error
    assert "Traceback" not in error
    assert "secret" not in error
    assert _runs(store_uri) == []
