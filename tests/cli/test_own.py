"""`cedkv init` and `cedkv data` as their users meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cedkv.cli import main
from cedkv.cli.look import WARNED
from cedkv.config import load
from cedkv.data.build import build_corpus
from cedkv.data.encode import encode_corpus
from cedkv.data.near import occurs
from cedkv.data.own.assemble import sample_project
from cedkv.data.own.project import lay_out
from cedkv.models.load import load_tokenizer

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke.yaml"
STORY = (
    "The {place} of {name} was built in {year} by a man called {who}. It has {rooms} rooms, and the oldest of them looks to the "
    "{side}. In winter the people of the {place} burn {fuel}, which comes by boat from {where}. Every {day} somebody rings the "
    "great bell {times} times, and {who} is said to hear it. The roof was mended with {roof} after the storm of {storm}."
)
PARTS = {
    "place": "lighthouse|watermill|priory|granary|observatory",
    "name": "Aldmouth|Brenwick|Carrow|Dunmere|Eskford",
    "who": "Abel Osgood|Berta Lund|Cyrus Vane|Dora Quill|Enoch Marsh",
    "side": "quay|orchard|moor|cliff|weir",
    "fuel": "peat|driftwood|coal|charcoal|bracken",
    "where": "Norholm|Ostby|Pell|Quarry Bay|Rona",
    "day": "Monday|Tuesday|Friday|Sunday|market day",
    "roof": "slate|copper|thatch|lead|shingle",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five texts about five places."""
    folder = tmp_path_factory.mktemp("texts")
    for n in range(5):
        words = {key: values.split("|")[n] for key, values in PARTS.items()}
        numbers = {"year": 1700 + 13 * n, "rooms": 3 + n, "times": 20 + 7 * n, "storm": 1800 + 11 * n}
        (folder / f"{words['name']}.txt").write_text(STORY.format(**words, **numbers))
    return folder


@pytest.fixture(scope="module")
def project(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project made of them, some kept outside."""
    folder = tmp_path_factory.mktemp("home") / "places"
    assert main(["init", str(folder), "--from", str(texts), "--holdout", "0.3"]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["init", str(ROOT / "tests")],
            "holds files already; a project is laid out in a new or empty folder",
        ),
        (["init", "new", "--from", "nowhere.txt"], "nowhere.txt: cannot be read (No such file or directory)"),
        (["init", "new", "--holdout", "0.2"], "--prompts and --holdout are about the text of --from"),
        (["data", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_a_mistake_is_said_before_anything_heavy_is_imported(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    code = (
        f"import sys; from cedkv.cli import main\nstatus = main({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'scipy', 'numpy'} & set(sys.modules)\nsys.exit(f'{status} {heavy}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    message, status = done.stderr.splitlines()
    assert message.startswith("cedkv: error: ")
    assert says in message
    assert status == "2 set()"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--prompts", "cloze,riddle"], ["--holdout", "1"], ["--holdout", "x"], ["--seed", "-1"], []],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["init", *(["new"] if arguments else []), *arguments])
    assert left.value.code == 2
    assert "usage: cedkv init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("Yes. No. It is so.", [], "of 1 documents none gave prompts for training and for evaluation"),
        (STORY, ["--holdout", "0.5"], "--holdout 0.5 of 1 documents that differ: 3 would stay outside"),
    ],
)
def test_too_little_text_leaves_nothing_behind(
    tmp_path: Path, text: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert main(["init", str(tmp_path / "new"), "--from", str(tmp_path / "a.txt"), *more]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# --------------------------------------------------------------------------------------------------- a project of texts
def test_it_is_read_as_training_reads_it(project: Path, texts: Path) -> None:
    config = load(project / "cedkv.yaml", env={}).config
    assert not config.data.repeat_bos
    corpus, tokens = build_corpus(config), load_tokenizer("embedded")
    encode_corpus(config, corpus, tokens.tokenizer, tokens.context_length)
    assert len(corpus.documents) == 2
    assert len(corpus.off_train) == 2 * 8 * 64
    for row in (*corpus.on_train, *corpus.on_eval):
        assert row.prompt + row.answer in (texts / f"{row.document}.txt").read_text()


def test_documents_outside_the_bank_ask_near_misses_each_in_one_split(project: Path) -> None:
    corpus = build_corpus(load(project / "cedkv.yaml", env={}).config)
    bank = {document.id for document in corpus.documents}
    homes: dict[str, set[str]] = {}
    for split in ("off_train", "stress", "sealed"):
        for row in getattr(corpus, split):
            if row.family.startswith("near/"):
                homes.setdefault(row.id.split("/")[1], set()).add(split)
                assert not any(occurs(row.prompt, document.text) for document in corpus.documents)
    assert {frozenset(splits) for splits in homes.values()} == {
        *map(frozenset, ({"off_train"}, {"stress"}, {"sealed"}))
    }
    assert not bank & set(homes)


def test_the_same_arguments_make_the_same_files(project: Path, texts: Path, tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "again"), "--from", str(texts), "--holdout", "0.3"]) == 0
    assert snapshot(tmp_path / "again") == snapshot(project)


def test_a_models_folder_is_written_as_seen_from_the_project(
    small_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_model.parent)
    folder = tmp_path / "new"
    kinds = ["--prompts", "continuation"]
    assert main(["init", str(folder), "--model", small_model.name, "--from", str(texts), *kinds]) == 0
    config = load(folder / "cedkv.yaml", env={}).config
    assert config.model.name_or_path.startswith("..")
    assert Path(config.model_source) == small_model.resolve()
    assert {row.id.split("/")[1].split("-")[0] for row in build_corpus(config).on_train} == {"continuation"}


# ------------------------------------------------------------------------------------------------------- its report
def test_the_report_of_a_project_finds_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(project)
    assert main(["data", str(project / "cedkv.yaml"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["documents"] == found["documents_given"] == 2
    assert {"near/cloze", "near/continuation"} <= set(found["families"])
    assert [one["rule"] for one in found["findings"] if one["rule"] != "few_eval"] == []
    assert snapshot(project) == before


def test_findings_are_a_status_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path / "ours", sample_project("embedded", 1).write)
    report = ["data", str(tmp_path / "ours" / "cedkv.yaml")]
    assert main([*report, "--strict"]) == 0
    assert capsys.readouterr().out.endswith("\nnothing to mend was found\n")
    small = "--set=phase3.eval.off_fixed_stress.size=200"
    assert main([*report, small]) == 0
    assert main([*report, small, "--strict"]) == WARNED
    assert "1 finding:\n  small_stress: a stress set of 200 has no 95 % bound" in capsys.readouterr().out


def test_a_generated_corpus_has_a_report_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(SMOKE)]) == 0
    assert "documents     8\n" in capsys.readouterr().out


def test_rows_that_are_wrong_are_the_errors_of_training(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", str(project / "cedkv.yaml"), "--set", "phase3.eval.on_samples=3"]
    assert main(arguments) == 2
    assert "holds 2 documents, but phase3.eval.on_samples asks for 3" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- end to end
SMALL = (
    "phase3.layer_scope={mixture: top50, injection: top50}",
    "phase3.memory.slots=2",
    "phase3.candidate.pool_size=8",
    "phase3.train={steps: 5, on_batch: 4, off_batch: 4, topk_schedule: [8, 4, 2, 2]}",
    "phase3.loss.off.hard_pool_size=8",
    "phase3.eval={on_samples: 2, off_samples: 64, off_fixed_stress: {size: 24}, off_sealed: {size: 16}}",
)


def test_a_new_project_trains_and_is_judged(
    small_model: Path, store_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["init", str(folder), "--model", str(small_model)]) == 0
    sets = [f"--set={key}" for key in (*SMALL, f"tracking.uri={store_uri}")]
    for phase in ("2", "3"):
        assert main(["--config", str(folder / "cedkv.yaml"), "--phase", phase, *sets]) == 0
    capsys.readouterr()
    assert main(["gate", "--latest", "--tracking-uri", store_uri]) in {0, 10}
    assert "Gate A" in capsys.readouterr().out


@pytest.mark.slow
def test_the_way_of_the_readme(tmp_path: Path) -> None:
    """As a user goes it: every command of the project's page in its folder, on the model that ships."""

    def cedkv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cedkv", *arguments],
            cwd=cwd,
            env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    made = cedkv("init", "mine", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "mine"
    report = cedkv("data", "cedkv.yaml", "--strict", cwd=folder)
    assert (report.returncode, report.stderr) == (0, "")
    for phase, verdict in (("2", 10), ("3", 0)):
        done = cedkv("--config", "cedkv.yaml", "--phase", phase, cwd=folder)
        assert done.returncode == 0, done.stderr
        judged = cedkv("gate", "--latest", cwd=folder)
        assert judged.returncode == verdict, judged.stdout
    assert cedkv("report", "--latest", cwd=folder).returncode == 0
    assert (folder / "mlruns" / "mlflow.db").exists()
