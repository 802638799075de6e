"""The program as its users start it: launched, judged from the log, interrupted, and given what it cannot use."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cedkv import ledger
from cedkv.cli import main
from cedkv.tracking.reader import list_runs, read_run
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"
STEPS = "--set=phase3.train.steps=6"


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in the repository's folder, on one thread."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def launched(processes: int, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch -m cedkv ...` as in the Makefile."""
    several = ["--multi_gpu"] if processes > 1 else []
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", *several]
    launch += ["--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "cedkv"]
    return command(*launch, *arguments, ACCELERATE_USE_CPU="true", **env)


# --------------------------------------------------------------------------------------- the main job, at smoke scale
@pytest.fixture(scope="module")
def store(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("end-to-end") / "mlflow.db"
    path.write_bytes(store_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def runs(store: str) -> dict[int, str]:
    """Phase 2 in this process, then Phase 3 launched, on the model that ships; the id each prints."""
    flags = ("--config", str(SMOKE), "--phase3-strict-hf", STEPS)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*flags, "--phase", "2", f"--set=tracking.uri={store}"]) == 0
    done = launched(1, *flags, "--phase", "3", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "cedkv: step 6/6  on " in done.stderr
    return {2: _run_id(out.getvalue()), 3: _run_id(done.stdout)}


def _run_id(printed: str) -> str:
    first, second = printed.splitlines()
    found = first.removeprefix("run ")
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert second == f"judge it: cedkv gate {found}"
    return found


def test_both_phases_finish_and_log_everything(store, runs):
    folder = Path(store.removeprefix("sqlite:///")).parent
    artifacts = {
        value
        for name, value in vars(ledger).items()
        if name.isupper() and isinstance(value, str) and "." in value
        if not name.startswith(("TAG_", "TUNE_")) and not name.endswith("_PREFIX")
    } - {ledger.CERTIFICATE}  # only a certification leaves one
    for phase, run_id in runs.items():
        record = read_run(run_id, store)
        assert (record.status, record.problems) == ("FINISHED", ())
        assert record.tags[ledger.TAG_PHASE] == str(phase)
        assert record.tags[ledger.TAG_STRICT_HF] == "true"
        assert record.params["phase3.train.steps"] == "6"
        assert record.config["phase3"]["train"]["steps"] == 6
        assert len(record.stress_table) == 128
        assert len(record.on_table) == 8 * 8
        (files,) = folder.glob(f"**/{run_id}/artifacts")
        present = {str(file.relative_to(files)) for file in files.rglob("*") if file.is_file()}
        traces = {
            *(ledger.LOSS_CURVE, ledger.LAMBDA_TRACE, ledger.TOPK_TRACE, ledger.ATOM_TYPE_MASS),
            *(
                ledger.WARN_TRACE,
                ledger.DELIMITER_SLOTS,
                ledger.PROXY_SCATTER,
                ledger.DELIMITER_WARNINGS,
            ),
        }
        assert present == (artifacts if phase == 3 else artifacts - traces)
        for name in present:
            if name.endswith(".json"):
                json.loads((files / name).read_text())
    assert read_run(runs[3], store).metrics[ledger.NULL_INJECTION_MAX_KL] == 0.0


def test_the_gate_reaches_a_verdict_from_the_log(store, runs):
    """Whatever the weights are, nothing is missing: each check passes or fails."""
    done = command(
        sys.executable,
        "-m",
        "cedkv",
        "gate",
        runs[3],
        "--milestone",
        "--format",
        "json",
        MLFLOW_TRACKING_URI=store,
    )
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["status"]) in {(0, "pass"), (10, "fail")}
    assert done.stderr == ""
    assert {check["status"] for check in verdict["checks"]} <= {"pass", "fail"}
    assert verdict["milestone"]["status"] == "not applicable"


def test_the_report_is_printed_and_attached(store, runs, capsys):
    assert main(["report", runs[3], "--tracking-uri", store]) == 0
    printed = capsys.readouterr().out
    for name in (
        ledger.P99_STRESS,
        ledger.P99_TYPICAL,
        ledger.LOSS_ON,
        ledger.LOSS_OFF,
        ledger.LOSS_STR,
        "lambda_off",
    ):
        assert name in printed
    (attached,) = Path(store.removeprefix("sqlite:///")).parent.glob(
        f"**/{runs[3]}/artifacts/{ledger.REPORT_MARKDOWN}"
    )
    assert attached.read_text() == printed


# ------------------------------------------------------------------------------------------------- interrupted and ended
@pytest.fixture
def arguments(small_model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a small run that logs below `tmp_path`."""
    sizes = [setting for setting in SMALL if not setting.startswith("data=")]
    store = f"tracking.uri=sqlite:///{tmp_path / 'store' / 'mlflow.db'}"

    def make(*overrides: str, config: Path = SMOKE) -> list[str]:
        settings = (f"model.name_or_path={small_model}", *sizes, store, *overrides)
        return ["--config", str(config), *(f"--set={setting}" for setting in settings)]

    return make


@pytest.fixture
def database(store_template: Path, tmp_path: Path) -> str:
    """The store of `arguments`, made before the run, which is quicker."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mlflow.db").write_bytes(store_template.read_bytes())
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"


def only_run(uri: str) -> Any:
    (run,) = list_runs("cedkv", uri)
    return read_run(run.run_id, uri)


@pytest.mark.slow  # test_endings has the same of a smaller run
def test_sigterm_in_the_middle_ends_the_run_killed_with_what_was_traced(arguments, database):
    line = [sys.executable, "-m", "cedkv", *arguments("phase3.train.steps=100000")]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if "step 10/" in text:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    run = only_run(database)
    assert (run.status, run.tags[ledger.TAG_ERROR]) == ("KILLED", "terminated by SIGTERM")
    (curve,) = Path(database.removeprefix("sqlite:///")).parent.glob(f"**/{ledger.LOSS_CURVE}")
    assert [row["step"] for row in json.loads(curve.read_text())[:10]] == list(range(10))


def test_an_abort_is_one_line_and_status_1(arguments, database, capsys):
    limits = (
        "phase3.thresholds.off_delta_p99_max=1e-6",
        "phase3.train.constraint_warn.patience_eval_ticks=1",
    )
    assert main(arguments(*limits, "phase3.train.constraint_warn.action=abort")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("cedkv: the run was aborted: step 0: off_delta_p99_stress ")
    assert only_run(database).status == "FAILED"


def test_a_crash_shows_its_traceback_and_ends_the_run_failed(arguments, database, monkeypatch):
    from cedkv.train import main as training

    def broken(*_: object) -> None:
        raise RuntimeError("no more tables")

    monkeypatch.setattr(training, "stress_rows", broken)
    with pytest.raises(RuntimeError, match="no more tables"):
        main(arguments("phase3.train.steps=1"))
    run = only_run(database)
    assert (run.status, run.tags[ledger.TAG_ERROR]) == ("FAILED", "RuntimeError: no more tables")


# --------------------------------------------------------------------------------------------------------------- bad input
Files = dict[str, list[Any]]
TEXT = "Ada's city is Paris now. The market was quiet that morning. Bo's pet is cat, and Ada's food is rice."


@pytest.fixture
def own_text(tmp_path: Path) -> Callable[..., Path]:
    """A configuration over JSONL files that work, but for what is changed."""

    def make(**changes: list[Any]) -> Path:
        files: Files = {
            "documents": [{"id": f"d{n}", "text": TEXT} for n in range(3)],
            "on": [
                {
                    "document": f"d{n}",
                    "prompt": f"What is {name}'s city? A:",
                    "answer": " Paris",
                    "split": split,
                }
                for n in range(3)
                for name, split in (("Ada", "train"), ("Bo", "eval"))
            ],
            "off": [{"prompt": f"{n} + {m} ="} for n in range(6) for m in range(8)],
        } | changes
        for name, rows in files.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        config = tmp_path / "own.yaml"
        config.write_text("data: {source: jsonl, documents: documents.jsonl, on: on.jsonl, off: off.jsonl}\n")
        return config

    return make


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], store: Path) -> str:
    """The one message of a refused run, which leaves no store behind."""
    status = main(arguments)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("cedkv: phase 3: loading")]
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("cedkv: error: ")
    assert not store.exists()
    return lines[0].removeprefix("cedkv: error: ")


def test_own_text_that_works_does_work(arguments, own_text, database):
    """The files that the tests below spoil."""
    assert main(arguments("phase3.train.steps=1", config=own_text())) == 0
    assert only_run(database).status == "FINISHED"


SPOILED: dict[str, tuple[Files, str]] = {
    "a broken line": (
        {"off": ['{"prompt": "1 + 1 ="', *({"prompt": f"{n}?"} for n in range(99))]},
        r"off\.jsonl:1: ",
    ),
    "an empty file": ({"off": []}, r"off\.jsonl: "),
    "too few distinct OFF prompts": (
        {"off": [{"prompt": "1 + 1 ="}] * 40},
        r"off\.jsonl: 1 distinct OFF prompts of 40 given, but 36 are needed",
    ),
    "an OFF prompt longer than the context": (
        {"off": [{"prompt": " ".join([f"{n} rice"] * (300 if n == 7 else 1))} for n in range(36)]},
        r"OFF prompt 'off-[0-9a-f]+': \d+ \(prompt\) = \d+ tokens, more than the model's context of 256",
    ),
    "a document longer than the context": (
        {"documents": [{"id": f"d{n}", "text": TEXT * (20 if n == 2 else 1)} for n in range(3)]},
        r"ON prompt 'on-[0-9a-f]+': \d+ \(document\) \+ \d+ \(prompt\) \+ \d+ \(answer\) = \d+ tokens, more than",
    ),
    "an answer that begins inside a token": (
        {
            "on": [
                {"document": f"d{n}", "prompt": prompt, "answer": "no", "split": split}
                for n in range(3)
                for prompt, split in (("Ada plays the pia", "train"), ("Bo plays a pia", "eval"))
            ]
        },
        r"ON prompt 'on-[0-9a-f]+': prompt 'Ada plays the pia' and answer 'no' meet inside a token",
    ),
    "a document of delimiters": (
        {"documents": [{"id": f"d{n}", "text": TEXT if n else "... , ; !\n\n--- ???"} for n in range(3)]},
        r"document 'd0' has no candidate atom that is not a delimiter",
    ),
    "too few documents": (
        {"documents": [{"id": "d0", "text": TEXT}]},
        r"documents\.jsonl: holds 1 documents, but phase3\.eval\.on_samples asks for 3",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_data_that_cannot_work_is_one_message_and_leaves_nothing(arguments, own_text, tmp_path, capsys, case):
    changes, says = SPOILED[case]
    message = refused(arguments(config=own_text(**changes)), capsys, tmp_path / "store")
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.name_or_path=./nowhere", r"model\.name_or_path '.*nowhere' cannot be loaded"),
        ("phase3.layer_scope.mixture=[0]", r"layer_scope\.mixture.* \[0\] .*layer_scope\.injection"),
        (
            "phase3.layer_scope={mixture: [9], injection: [9]}",
            r"layer_scope names layer 9, but attention layers are",
        ),
        ("phase3.eval.off_fixed_stress.size=10000000", r"phase3\.eval\.off_fixed_stress\.size is 10000000"),
        ("phase3.eval.on_samples=2000", r"phase3\.eval\.on_samples = 2000 documents"),
        ("phase3.memory.slots=500", r"candidate atoms.* for 500 slots"),
        ("tracking.uri=./mlruns", r"tracking store './mlruns' is a folder of files"),
        ("model.device=cuda", r"model\.device is 'cuda', but this torch sees no CUDA device"),
    ],
)
def test_settings_that_cannot_work_are_one_message_and_leave_nothing(
    arguments, tmp_path, capsys, override, says
):
    import torch

    if override == "model.device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    message = refused(arguments(override), capsys, tmp_path / "store")
    assert re.search(says, message), message


NONFIXED = (
    "phase3.runtime.policy_mode=debug",
    "phase3.runtime.debug_allow_nonfixed_constraint_sources=true",
    "phase3.train.lambda_off.dual.metric_source=hard_pool",
)


def test_ci_forces_prod_and_prod_refuses_another_source_for_the_dual(
    arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr("cedkv.train.main.prepare", lambda *_: pytest.fail("the model was loaded"))
    assert main(arguments(*NONFIXED)) == 2
    told, note = capsys.readouterr().err.splitlines()
    assert 'phase3.train.lambda_off.dual.metric_source = "hard_pool": policy_mode prod reads' in told
    assert note == "  note: phase3.runtime.policy_mode: debug was forced to prod because CI is set"
    assert not (tmp_path / "store").exists()


def test_a_debug_run_may_and_its_verdict_says_so(arguments, database, capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert main(arguments(*NONFIXED, "phase3.train.steps=1")) == 0
    run = only_run(database)
    assert run.tags[ledger.TAG_SOURCE_LAMBDA] == "hard_pool"
    capsys.readouterr()
    main(["gate", run.run_id, "--tracking-uri", database])
    out = capsys.readouterr().out
    assert "policy mode debug: not a production run" in out
    assert "lambda_off followed hard_pool, not the fixed stress set" in out


def test_an_unsupported_family_is_refused_by_name(arguments, tmp_path, capsys):
    from transformers import GPTJConfig, GPTJForCausalLM

    folder = tmp_path / "gptj"
    config = GPTJConfig(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, rotary_dim=4)
    GPTJForCausalLM(config).save_pretrained(folder)
    capsys.readouterr()  # transformers' progress bar
    message = refused(arguments(f"model.name_or_path={folder}"), capsys, tmp_path / "store")
    assert message.startswith("model family 'gptj' does not route its attention")


@pytest.mark.parametrize("place", ["file/mlflow.db", "/proc/cedkv/mlflow.db"])
def test_a_store_that_cannot_be_written_is_one_message_before_anything_is_loaded(
    arguments, tmp_path, capsys, monkeypatch, place
):
    from cedkv.train import main as training

    monkeypatch.setattr(training, "prepare", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    message = refused(arguments(f"tracking.uri=sqlite:///{tmp_path / place}"), capsys, tmp_path / "store")
    assert str(tmp_path / place) in message
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["file"]
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.slow
def test_a_mistake_found_by_the_launched_program_is_one_message_too(tmp_path):
    done = launched(
        1,
        "--config",
        str(SMOKE),
        "--set=model.name_or_path=./nowhere",
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/m.db",
    )
    assert done.returncode != 0
    assert done.stderr.count("cedkv: error: model.name_or_path") == 1
    assert list(tmp_path.iterdir()) == []
