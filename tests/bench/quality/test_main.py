"""`cedkv bench quality` as a whole: it goes on where it was killed, refuses mistakes, and reports what is there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cedkv.bench import figure as house
from cedkv.bench.quality import main as quality
from cedkv.bench.quality.options import METHODS, Options
from cedkv.bench.quality.pressed import PRESSES
from cedkv.bench.quality.report import Report, to_markdown
from cedkv.bench.quality.result import Check, Kept, Result, as_json, from_json
from cedkv.bench.quality.setting import Setting
from cedkv.cli import main
from tests.conftest import RunFactory
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[3]
KVPRESS = ROOT / "build" / "kvpress-env" / "bin" / "python"


def made(runs: RunFactory, method: str, seed: int = 5, *, student: int = 60, top: float = 0.04) -> Result:
    return Result(
        method,
        seed,
        runs.on_rows(student=student),
        runs.stress_rows([top * i / 400 for i in range(400)]),
        bytes=8448,
        seconds=1.5,
        notes=("a note",),
        checks=(Check("peft", 1e-6, 1e-3),),
        facts={"rate": 0.1},
    )


def test_a_result_comes_back_from_disk_as_it_was(runs: RunFactory, tmp_path: Path) -> None:
    kept, result = Kept(tmp_path), made(runs, "lora")
    path = kept.path(5, "lora", {"config": "x"})
    assert kept.read(path) is None
    kept.write(path, as_json(result))
    content = kept.read(path)
    assert content is not None
    assert from_json(content) == result
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing unfinished beside it
    assert kept.path(5, "lora", {"config": "y"}) != path


def test_a_benchmark_goes_on_where_it_was_killed(
    small_options: Callable[..., Options], runs: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_options(methods=("base", "random_slots", "full_context"))
    asked: list[str] = []

    def make(setting: Setting, kept: Kept, method: str) -> Result:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(method)
        return made(runs, method)

    monkeypatch.setattr(quality, "make", make)
    with pytest.raises(KeyboardInterrupt):
        quality.measure(options, tmp_path, lambda _: None)
    assert asked == ["base", "random_slots"]
    asked.clear()
    found = quality.measure(options, tmp_path, lambda _: None)
    assert asked == ["full_context"]
    assert [row["method"] for row in json.loads(found.json)["results"]] == [
        "base",
        "full_context",
        "random_slots",
    ]
    # Another configuration is another benchmark.
    asked.clear()
    other = replace(options, overrides=(*options.overrides, "phase3.train.lr=0.5"), methods=("base",))
    quality.measure(other, tmp_path, lambda _: None)
    assert asked == ["base"]


def test_the_table_has_means_ranges_and_whatever_is_missing(runs: RunFactory) -> None:
    results = [
        made(runs, "phase3", 5, top=0.02),
        made(runs, "phase3", 6, student=62, top=0.03),
        made(runs, "lora", 5, top=8.0),
        Result("kvpress_knorm", 5, absent="not applicable: because"),
    ]
    facts: dict[str, str | int | None] = dict.fromkeys(("gpu", "cpu", "threads", "cpus", "device", "dtype"))
    facts |= {"torch": "2", "transformers": "5", "peft": None, "python": "3"}
    report = Report(
        "c.yaml", facts, 0.05, results, {"bare": [1.0, 1.01, 0.99], "slots with a bias": [1.02] * 3}
    )
    text = to_markdown(report, None)
    assert "| cedkv Phase 3 | 2 | +0.510 (+0.500 to +0.520) |" in text
    assert "| 8,448 | 1.5 | +2.0% |" in text
    assert "| peft LoRA | 1 | +0.500 |" in text
    assert "- kvpress Knorm: not applicable: because" in text
    assert (
        "| Phase 3 has the best ON of all that pass OFF p99 ≤ 0.05 on every seed | 1 pass: cedkv Phase 3 +0.510 | met |"
        in text
    )
    assert "worst 1.0e-06 ≤ 1e-03" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "base,lorra"], "'lorra' is none of base, full_context"),
        (["--seeds", "1,1"], "'1,1' is no list of different whole numbers"),
        (["--seeds", "1,x"], "'1,x' is no list of different whole numbers"),
    ],
)
def test_mistakes_on_the_command_line_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "quality", "--config", "configs/smoke.yaml", *arguments])
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_an_interpreter_without_kvpress_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "quality", "--config", str(ROOT / "configs/smoke.yaml"), "--only", "kvpress_knorm"]
    command += ["--kvpress", "/no/such/python", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "cannot import kvpress" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.timeout(900)
def test_every_method_on_a_small_model(
    small_model: Path, store_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra: peers)")
    command = ["bench", "quality", "--config", str(ROOT / "configs/smoke.yaml"), "--seeds", "5,6"]
    command += [f"--set={setting}" for setting in (f"model.name_or_path={small_model}", *SMALL)]
    command += ["--tracking-uri", store_uri, "--out", str(tmp_path), "--json", str(tmp_path / "all.json")]
    if KVPRESS.exists():
        command += ["--kvpress", str(KVPRESS)]
    assert main(command) == 0
    text = capsys.readouterr().out
    content = json.loads((tmp_path / "all.json").read_text())
    assert {row["method"] for row in content["results"]} == set(METHODS)
    for row in content["results"]:
        if row["method"] in PRESSES and not KVPRESS.exists():
            assert row["absent"] == "no interpreter with kvpress was given (--kvpress)"
            continue
        assert row["agrees"], row
        assert all(math.isfinite(v) for name, v in row["metrics"].items() if v is not None), row
        if row["method"] not in ("base", "full_context"):
            assert row["bytes"] > 0
            assert row["metrics"]["off_delta_p99_stress"] > 0
    assert all(f"| {name} | 2 |" in text for method, name in METHODS.items() if method not in PRESSES)
    assert set(content["overhead"]) == {
        "bare",
        "slots",
        "slots with a bias",
        "peft prefix",
        "peft LoRA",
        "full context",
    }
    if house.can_draw():
        assert (tmp_path / "quality.svg").read_text().startswith("<?xml")
    assert main(command) == 0  # nothing is computed again
    assert "training" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not KVPRESS.exists(), reason="build/kvpress-env, made as the refusal says, is not there")
def test_kvpress_without_compression_is_the_teacher(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens but one kept: nearly the full context, so that a wrong mask or position would show."""
    from cedkv.bench.quality import pressed

    shortest = min(len(context.ids) for context in setting.experiment.encoded.contexts)
    monkeypatch.setattr(pressed, "tokens_for", lambda *_: shortest - 1)
    options = replace(setting.options, kvpress=str(KVPRESS))
    here = Setting(options, 5, lambda _: None)
    here.__dict__["experiment"] = setting.experiment
    metrics = pressed.pressed(here, "kvpress_knorm").metrics
    assert metrics["rel_kl_to_teacher"] < 0.5
