from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cedkv.cli import commands, main
from cedkv.config import config_hash, load, yaml12

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "configs" / "smoke.yaml")
DUAL = str(ROOT / "configs" / "tune" / "dual.yaml")
HEAVY = "('torch', 'mlflow', 'transformers', 'accelerate', 'numpy', 'plotly', 'optuna')"


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user starts it."""
    command = [sys.executable, "-m", "cedkv", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60
    )


# --------------------------------------------------------------------------------------------- fast before anything
@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        (["--help"], ", 'pydantic', 'yaml'"),
        (["train", "--help"], ", 'pydantic', 'yaml'"),
        (["bench", "speed", "--help"], ", 'pydantic', 'yaml'"),
        (["--config", "nowhere.yaml"], ""),
        (["--config", SMOKE, "--set", "phase3.train.steps=none"], ""),
        (["tune", "--config", SMOKE, "--space", "nowhere.yaml"], ""),
        (["tune", "--config", SMOKE, "--space", DUAL, "--set", "phase3.loss.lambda_on=-1"], ""),
        (["config", "show", SMOKE], ""),
        (["config", "schema"], ""),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str], also: str) -> None:
    code = (
        "import sys; from cedkv.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit(str([name for name in {HEAVY[:-1]}{also}) if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in ("train", "gate", "report", "config", "bench", "model"))


# --------------------------------------------------------------------------------------------------- a user's mistakes
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "nowhere.yaml"], "cedkv: error: nowhere.yaml does not exist; give the path"),
        (["train", "--config", SMOKE, "--set", "phase3.train.stepz=1"], "did you mean phase3.train.steps?"),
        (["--resume", "abc"], "run id 'abc' is not 32 lower-case hex digits"),
        (["--resume", "abc", "--explore"], "--resume with --explore: a run is exploratory from its start"),
        (["--resume", "abc", "--set", "data.seed=1"], "--resume with --set: it changes the file"),
        (["--resume", "abc", "--phase", "2"], "--resume with --phase 2: the baseline trains nothing"),
        (["--config", SMOKE, "--allow-changed", "data"], "--allow-changed belongs to --resume"),
        (["--phase", "3"], "no configuration: give --config FILE"),
        (["--config", SMOKE, "--explore", "--phase", "2"], "only Phase 3 runs are explored"),
        (
            ["--config", SMOKE, "--explore", "--set", "phase3.milestone.explore.enabled=false"],
            "the milestone would never be judged; enable it",
        ),
        (
            ["--config", SMOKE, "--phase3-strict-hf", "--set", "phase3.loss.source=auto"],
            "trains on proxies, and",
        ),
        (["config", "validate", SMOKE, "--set", "data.seed=x"], 'data.seed = "x": must be a whole number'),
        (["config", "show", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["gate", "not-an-id"], "not-an-id"),
        (["gate", "--latest", "--tracking-uri", "./mlruns"], "is a folder of files"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cedkv: error: ")
    assert err.count("cedkv: error") == 1
    assert says in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["--config", SMOKE, "--phase", "4"],
        ["gate"],
        ["gate", "a", "--latest"],
        ["config"],
    ],
)
def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: cedkv" in capsys.readouterr().err


def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("phase3: {train: {steps: x, lr: y}}")
    done = run("--config", str(path), "--phase", "3", "--phase3-strict-hf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"cedkv: error: {path} has 2 problems:",
        '  - phase3.train.steps = "x": must be a whole number; the default is 200',
        '  - phase3.train.lr = "y": must be a number; the default is 0.05',
    ]


def test_of_several_processes_one_speaks() -> None:
    silent, loud = (run("--config", "nowhere.yaml", LOCAL_RANK=rank) for rank in ("1", "0"))
    assert (silent.returncode, silent.stderr) == (2, "")
    assert loud.stderr.startswith("cedkv: error: ")


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "config_schema", interrupted)
    assert main(["config", "schema"]) == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cedkv", "config", "schema"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


# ------------------------------------------------------------------------------------------------------------ config
def test_config_validate_prints_the_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", SMOKE]) == 0
    assert capsys.readouterr().out == f"{SMOKE}: valid, hash {config_hash(load(SMOKE, env={}).config)}\n"


def test_config_show_prints_what_can_be_loaded_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(["config", "show", SMOKE, "--phase", "2", "--phase3-strict-hf", "--set", "phase3.train.lr=1e-2"])
        == 0
    )
    text = capsys.readouterr().out
    path = tmp_path / "resolved.yaml"
    path.write_text(text)
    shown = load(path, phase=2, env={}).config
    assert text.splitlines()[0] == f"# hash {config_hash(shown)}"
    assert (shown.phase3.train.lr, shown.phase3.runtime.strict_hf, shown.phase3.mix.mode) == (
        0.01,
        True,
        "anchor",
    )
    assert yaml12.parse(text, "shown")["phase3"]["loss"]["off"]["type"] == "cvar"


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)["properties"]) == {
        "base_dir",
        "model",
        "data",
        "tracking",
        "checkpoint",
        "phase3",
    }


def test_notes_go_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", SMOKE, "--set", "phase3.loss.off.cvar_q=0.8"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{SMOKE}: valid")
    assert err == (
        "cedkv: note: phase3.loss.off.cvar_q is deprecated; 0.8 was read as cvar_tail_fraction: 0.2, "
        "write that instead\n"
    )
