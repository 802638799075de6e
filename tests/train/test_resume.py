"""A run that is interrupted, in many ways, goes on as the run it was: bit for bit, each point of its history once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cedkv import ledger
from cedkv.config import dump_yaml
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowClient
from cedkv.tracking.reader import read_run, read_traces
from cedkv.train import main
from cedkv.train.finite import NonFiniteError
from cedkv.train.main import run_training
from cedkv.train.reproduction import differences
from cedkv.train.resume import check_room, checkpoints_of, resumption

STEPS = ("checkpoint.every=5",)
GATED = (
    "phase3.mix={slot_gate: affine, value_residual: learned, share: head, k_anchor: {share: head}}",
    "phase3.layer_scope={mixture: top50, injection: top50}",
    "phase3.train.keep=best_feasible",
    "phase3.loss.source=auto",
    "phase3.loss.proxy_min_spearman=0.99",
    "phase3.thresholds.off_delta_p99_max=5.0",
)


class StoppedError(Exception):
    """Stands for whatever ends a run between two steps."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next run ends with `StoppedError` once `step` is done, before it could be saved."""
    from cedkv.train.resume import Saver

    saved = Saver.after_step

    def after_step(self):
        if self.trainer.done == step:
            raise StoppedError
        saved(self)

    monkeypatch.setattr(Saver, "after_step", after_step)


def resume(run_id: str, uri: str, config=None, allowed=()) -> list[str]:
    """Go on with a run; what it warned of."""
    told: list[str] = []
    with resumption(run_id, uri, config, allowed, told.append) as resumed:
        assert run_training(resumed.config, phase=3, progress=False, resumed=resumed) == run_id
    return told


def interrupted(config, uri: str, monkeypatch: pytest.MonkeyPatch, step: int) -> str:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(StoppedError):
            run_training(config, phase=3, progress=False)
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"], "status = 'FAILED'")
    return run.info.run_id


def history(run_id: str, uri: str) -> dict[str, list[tuple[int, str]]]:
    """Every point of every metric, (step, value), but how long things took."""
    client = MlflowClient(uri)
    names = sorted(client.get_run(run_id).data.metrics)
    return {
        name: sorted((point.step, repr(point.value)) for point in client.get_metric_history(run_id, name))
        for name in names
        if not name.startswith("perf/")
    }


def memory(run_id: str, uri: str) -> dict[str, torch.Tensor]:
    root = Path(uri.removeprefix("sqlite:///")).parent
    (file,) = root.glob(f"**/{run_id}/artifacts/{ledger.MEMORY_TENSORS}")
    return load_file(file)


def assert_same_run(first: str, second: str, uri: str) -> None:
    """Two runs have the same memory, history, tables and traces, bit for bit."""
    ours, theirs = memory(first, uri), memory(second, uri)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert history(first, uri) == history(second, uri)
    traces = read_traces(first, uri), read_traces(second, uri)
    assert json.dumps(traces[0], sort_keys=True) == json.dumps(traces[1], sort_keys=True)
    assert differences(read_run(first, uri), read_run(second, uri), traces) == []


@pytest.mark.parametrize("settings", [(), GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("step", [5, 7, pytest.param(12, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    small_config, store_uri, monkeypatch, settings, step
):
    config = small_config(f"tracking.uri={store_uri}", *STEPS, *settings)
    run_id = interrupted(config, store_uri, monkeypatch, step)
    if step == 5:  # done, and not saved yet
        with pytest.raises(UserError, match="no good checkpoint"):
            resume(run_id, store_uri)
        return
    whole = run_training(config, phase=3, progress=False)
    resume(run_id, store_uri)
    assert_same_run(run_id, whole, store_uri)
    record = read_run(run_id, store_uri)
    assert record.status == "FINISHED"
    assert record.tags[ledger.TAG_RESUMED] == ("5" if step == 7 else "10")
    assert ledger.TAG_ERROR not in record.tags
    assert not checkpoints_of(run_id, store_uri).folder.exists()


def test_a_run_may_be_interrupted_again_and_again(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", "checkpoint.every=1", *GATED)
    run_id = interrupted(config, store_uri, monkeypatch, 2)
    for step in (3, 4, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(StoppedError):
                resume(run_id, store_uri)
    resume(run_id, store_uri)
    assert read_run(run_id, store_uri).tags[ledger.TAG_RESUMED] == "1, 2, 3, 8"
    assert_same_run(run_id, run_training(config, phase=3, progress=False), store_uri)


def test_points_are_logged_once(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    resume(run_id, store_uri)
    steps = Counter(step for step, _ in history(run_id, store_uri)[ledger.LOSS])
    assert steps == dict.fromkeys(range(12), 1)


def test_a_finished_run_is_not_resumed(small_config, store_uri):
    run_id = run_training(small_config(f"tracking.uri={store_uri}"), phase=3, progress=False)
    with pytest.raises(UserError, match=f"run {run_id} is finished"):
        resume(run_id, store_uri)


def test_what_changed_is_shown_and_must_be_allowed_by_name(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    other = small_config(
        f"tracking.uri={store_uri}", *STEPS, "phase3.train.lr=0.01", "phase3.loss.lambda_str=0.2"
    )
    with pytest.raises(UserError) as refused:
        resume(run_id, store_uri, other, ["phase3.loss"])
    assert "phase3.train.lr: was 0.05, is 0.01" in str(refused.value)
    assert "lambda_str" not in str(refused.value)
    assert "--allow-changed phase3.train.lr" in str(refused.value)
    assert read_run(run_id, store_uri).status == "FAILED", "refused before anything was touched"
    resume(run_id, store_uri, other, ["phase3.loss", "phase3.train.lr"])
    record = read_run(run_id, store_uri)
    assert json.loads(record.tags[ledger.TAG_CHANGED]) == {
        "phase3.loss.lambda_str": ["0.1", "0.2"],
        "phase3.train.lr": ["0.05", "0.01"],
    }
    assert record.config["phase3"]["train"]["lr"] == 0.01
    assert record.tags[ledger.TAG_CONFIG_HASH] == main.config_hash(other)
    # What stands last at every step is what was computed for the memory that was kept, not what was given up.
    client, trace = MlflowClient(store_uri), read_traces(run_id, store_uri)[ledger.LOSS_CURVE]
    points = client.get_metric_history(run_id, ledger.LOSS)
    last = {p.step: p.value for p in sorted(points, key=lambda p: p.timestamp)}
    assert last == {row["step"]: row[ledger.LOSS] for row in trace}
    assert Counter(p.step for p in points) == {step: 2 if 5 <= step < 9 else 1 for step in range(12)}


def test_a_misspelt_name_is_not_taken_for_permission(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    with pytest.raises(
        UserError, match=r"--allow-changed phase3.train.lrr: .* did you mean phase3.train.lr\?"
    ):
        resume(run_id, store_uri, None, ["phase3.train.lrr"])


def test_a_deleted_run_is_not_resumed(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    MlflowClient(store_uri).delete_run(run_id)
    with pytest.raises(UserError, match="is deleted; restore it"):
        resume(run_id, store_uri)


def test_a_place_that_takes_no_checkpoints_shows_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "mlruns").write_text("a file where a folder belongs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="checkpoints cannot be written to"):
        check_room("http://127.0.0.1:5000")


def test_another_number_of_threads_is_a_change(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UserError, match=f"{ledger.TAG_ENVIRONMENT}: was .*threads {threads}, is "):
            resume(run_id, store_uri)
    finally:
        torch.set_num_threads(threads)


def test_other_data_are_refused_before_the_run_is_touched(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    hashed = main.hashes

    def other(corpus):
        return {**hashed(corpus), "stress": {**hashed(corpus)["stress"], "sha256": "0" * 64}}

    monkeypatch.setattr(main, "hashes", other)
    with pytest.raises(UserError, match=f"{ledger.TAG_HASH_STRESS}: was .*, is 0000"):
        resume(run_id, store_uri)
    assert read_run(run_id, store_uri).status == "FAILED"


@pytest.mark.parametrize(
    "damage",
    [
        "bit",
        "half written",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("truncated", "no manifest")),
    ],
)
def test_a_damaged_checkpoint_is_found_and_the_one_before_used(small_config, store_uri, monkeypatch, damage):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 11)
    folder = checkpoints_of(run_id, store_uri).folder
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000005", "step-00000010"]
    newest = folder / "step-00000010"
    tensors = newest / "state.safetensors"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-40])
    elif damage == "bit":
        content = bytearray((newest / "state.json").read_bytes())
        content[len(content) // 2] ^= 1
        (newest / "state.json").write_bytes(content)
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(folder / ".step-00000010.new")
    told = resume(run_id, store_uri)
    assert len(told) == (damage != "half written")
    assert all("step-00000010" in line and "is damaged" in line for line in told)
    assert read_run(run_id, store_uri).tags[ledger.TAG_RESUMED] == "5"
    assert_same_run(run_id, run_training(config, phase=3, progress=False), store_uri)


def test_a_run_is_resumed_by_one_process_only(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = interrupted(config, store_uri, monkeypatch, 9)
    refused = pytest.raises(UserError, match=f"run {run_id} is open in another process")
    with checkpoints_of(run_id, store_uri), refused:
        resume(run_id, store_uri)
    resume(run_id, store_uri)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(small_config, store_uri, monkeypatch):
    from cedkv.train import checkpoint

    def full(file, content):
        raise OSError(28, "No space left on device")

    warned: list[str] = []
    monkeypatch.setattr(checkpoint, "_write", full)
    monkeypatch.setattr(main, "_say", lambda _, message: warned.append(message))
    config = small_config(f"tracking.uri={store_uri}", *STEPS)
    run_id = run_training(config, phase=3, progress=False)
    assert read_run(run_id, store_uri).status == "FINISHED"
    assert sum("No space left on device" in line for line in warned) == 3  # steps 5, 10, 12
    assert not list(Path(store_uri.removeprefix("sqlite:///")).parent.glob("checkpoints/*/*"))


def test_numbers_that_go_bad_leave_a_checkpoint(small_config, store_uri, monkeypatch):
    from cedkv.train.loop import Trainer

    terms = Trainer._terms

    def bad(self, *arguments):
        found = terms(self, *arguments)
        return replace(found, on=found.on * math.nan)

    config = small_config(
        f"tracking.uri={store_uri}", "checkpoint.every=0", "phase3.train.nonfinite_patience=2"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_terms", bad)
        with pytest.raises(NonFiniteError):
            run_training(config, phase=3, progress=False)
    (run,) = MlflowClient(store_uri).search_runs(["1"])
    resume(run.info.run_id, store_uri)
    record = read_run(run.info.run_id, store_uri)
    assert (record.status, record.tags[ledger.TAG_RESUMED]) == ("FINISHED", "2")
    assert record.metrics[ledger.NONFINITE_STEPS] == 2


# ------------------------------------------------------------------------------------------------ real processes, real signals
def started(config_file: Path, uri: str, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "cedkv",
        *more,
        *(["--config", str(config_file)] if "--resume" not in more else []),
    ]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def wait_for_steps(process: subprocess.Popen[str], done: int) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if f"step {done}/" in line:
            return
    raise AssertionError("it ended before")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_real_process_is_stopped_and_goes_on(small_config, store_uri, tmp_path, signum):
    config = small_config("phase3.train.steps=60", "checkpoint.every=20")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    process = started(file, store_uri)
    wait_for_steps(process, 30)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    (run,) = MlflowClient(store_uri).search_runs(["1"])
    run_id = run.info.run_id
    if signum == signal.SIGKILL:
        assert (process.returncode, run.info.status) == (-signal.SIGKILL, "RUNNING")
    else:
        assert run.info.status == "KILLED"
        newest = max(checkpoints_of(run_id, store_uri).folder.glob("step-*"))
        assert f"go on with: cedkv --resume {run_id}" in err
        steps = [step for step, _ in history(run_id, store_uri)[ledger.LOSS]]
        assert int(newest.name[5:]) == len(steps), (
            "saved where the signal came, not at the last twentieth step"
        )
    other = started(file, store_uri, "--resume", run_id[:8])
    out, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    assert f"run {run_id}" in out
    whole = started(file, store_uri)
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    assert_same_run(run_id, out.split()[1], store_uri)
