"""`cedkv bench speed` as a user starts it: on a machine without MLflow, pydantic and plotly; and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cedkv.bench import figure, report
from cedkv.bench.main import Outcome
from cedkv.bench.rows import Agreement, Row, Section
from cedkv.bench.timing import Spread
from cedkv.cli import main

ROOT = Path(__file__).parents[2]
NO_PEFT = "peft is not installed (extra: peers)"

# As if they were not installed: nothing finds them, and nothing says so.
WITHOUT = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {"mlflow", "plotly", "pydantic", "pydantic_core"}
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from cedkv.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    done: subprocess.CompletedProcess[str]
    out: Path
    content: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The three sections that measure a model, on the smallest shape."""
    pytest.importorskip("peft", reason=NO_PEFT)
    folder = tmp_path_factory.mktemp("speed")
    command = ["bench", "speed", "--quick", "--only", "stress,step,growth", "--model", "qwen2-tiny"]
    command += [
        "--repeats",
        "1",
        "--threads",
        "1",
        "--out",
        str(folder),
        "--json",
        str(folder / "speed.json"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Ran(done, folder, json.loads((folder / "speed.json").read_text()))


def test_a_measurement_needs_neither_mlflow_nor_pydantic_nor_plotly(ran: Ran) -> None:
    lines = ran.done.stderr.splitlines()
    assert all(line.startswith("cedkv: measuring ") for line in lines), ran.done.stderr


def test_the_json_has_facts_rows_and_the_summary(ran: Ran) -> None:
    content = ran.content
    assert content["machine"]["threads"] == 1
    assert {"torch", "transformers", "peft", "cpu", "gpu", "device"} <= set(content["machine"])
    assert set(report.SUMMARY) <= set(content["summary"])
    assert content["summary"]["tracking_share"] is None
    assert all(content["summary"][name] > 0 for name in report.SUMMARY if name != "tracking_share")
    assert content["summary"]["stress_over_floor"] > 1
    for row in content["rows"]:
        assert row["agrees"]
        assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
    names = [row["name"] for row in content["rows"] if row["section"] == "stress"]
    assert names == [
        "cedkv",
        "plain HF",
        "cedkv, slots in every layer",
        "peft CartridgeConfig",
        "peft PrefixTuningConfig",
        "floor",
        "floor, square product",
        "cedkv, begun alike",
        "plain HF, begun alike",
    ]


def test_every_row_that_computes_something_was_checked(ran: Ran) -> None:
    unchecked = [row["name"] for row in ran.content["rows"] if row["agreement"] is None]
    assert all(name == "floor, square product" or name.startswith("exponent of ") for name in unchecked)


def test_memory_does_not_grow_with_states(ran: Ran) -> None:
    assert ran.content["summary"]["growth_memory_in_states"] < 0.1


def test_the_tables_go_to_the_terminal_and_to_the_folder(ran: Ran) -> None:
    text = (ran.out / "speed.md").read_text()
    assert ran.done.stdout == text
    for title in ("Stress evaluation", "Training step", "Growth of stress evaluation", "Summary"):
        assert f"\n## {title}\n" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    if figure.can_draw():
        assert "](speed.svg)" in text
        assert (ran.out / "speed.svg").read_text().startswith("<?xml")


def _section(largest: float) -> Section:
    row = Row("stress", "one", "this", "ms", Spread((1.0, 2.0, 3.0)), Agreement("that", largest, 1e-4))
    return Section("stress", "Stress", (row,), ("A note.",), {"stress_vs_hf": 5.0})


def test_a_row_that_does_not_agree_is_marked() -> None:
    facts = {"gpu": None, "cpu": "C", "threads": 1, "cpus": 2, "device": "cpu", "dtype": "float32"}
    facts |= {"torch": "2", "transformers": "5", "peft": None, "python": "3"}
    text = report.to_markdown(facts, "m", [_section(1e-2)], None)
    assert "**NO**: 1.0e-02 > 1e-04, that" in text
    assert "peft" not in text.splitlines()[2]
    assert "yes: 1.0e-05 ≤ 1e-04, that" in report.to_markdown(facts, "m", [_section(1e-5)], None)
    assert "| `stress_vs_hf` | 5.00 |" in text
    assert "| `tracking_share` | not measured |" in text


@pytest.mark.parametrize(("agrees", "status"), [(True, 0), (False, 1)])
def test_the_status_says_whether_all_rows_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, agrees: bool, status: int
) -> None:
    monkeypatch.setattr("cedkv.bench.main.measure", lambda *_: Outcome("table\n", "{}\n", agrees))
    assert main(["bench", "speed", "--json", str(tmp_path / "x.json")]) == status
    assert (tmp_path / "x.json").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "qwen9", "--no-peers"], "--model 'qwen9' is neither 'embedded' nor a shape"),
        (["--device", "cuda:99", "--no-peers"], "this torch sees no CUDA device"),
        (["--out", "/dev/null/x", "--no-peers"], "--out '/dev/null/x' is no folder to write to"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["bench", "speed", "--quick", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_unknown_sections_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "speed", "--only", "stress,speed"])
    assert left.value.code == 2
    assert "'speed' is none of stress, step, growth, tracking, gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (3.14159, "3.14"), (1234.5, "1,234"), (2e-6, "2e-06"), (0.0, "0.00")],
)
def test_numbers_have_three_digits_that_mean_something(value: float, shown: str) -> None:
    assert report.number(value) == shown


@pytest.mark.parametrize("where", ["no-such-folder/x.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cedkv.bench.main.measure", lambda *_: pytest.fail("measured"))
    assert main(["bench", "speed", "--json", str(tmp_path / where)]) == 2
    assert "cannot be written: name a file in a folder that exists" in capsys.readouterr().err
