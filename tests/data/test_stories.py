"""scripts/make_stories.py on the real material, where it is present."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cedkv.config import Config
from cedkv.data.build import build_corpus
from cedkv.data.jsonl import read_documents, read_off, read_on
from cedkv.data.records import normalised
from cedkv.data.tokens import FastTokenizer, encode_document, encode_on, encode_prompt

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
SCRIPT = ROOT / "scripts" / "make_stories.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stories", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (SHARED / "data" / "tinystories").is_dir():
        pytest.skip("needs ../shared/data/tinystories")
    folder = tmp_path_factory.mktemp("stories")
    script.write(script.make(SHARED), folder)
    return folder


def test_the_files_make_a_corpus_at_full_scale(made: Path) -> None:
    data = {"source": "jsonl", **{name: f"{name}.jsonl" for name in ("documents", "on", "off")}}
    corpus = build_corpus(Config.model_validate({"base_dir": str(made), "data": data}))
    assert (len(corpus.documents), len(corpus.off_train), len(corpus.stress)) == (64, 256, 2048)
    assert len(corpus.sealed) > 2048
    assert {row.family for row in corpus.stress} == {"tinystories", "wikitext2", "svamp", "mbpp", "mt_bench"}


def test_every_prompt_fits_the_context_behind_its_document(made: Path, stories260k: FastTokenizer) -> None:
    documents = {document.id: document for document in read_documents(made / "documents.jsonl")}
    sizes = {name: len(encode_document(stories260k, document).ids) for name, document in documents.items()}
    for row in read_on(made / "on.jsonl", documents, seed=0):
        prompt, answer = encode_on(stories260k, row.prompt, row.answer, name=row.id)
        assert sizes[row.document] + len(prompt) + len(answer) <= 512
        assert 1 <= len(answer) <= 8


def test_evaluation_asks_for_the_name_with_which_the_story_goes_on(made: Path) -> None:
    stories = {
        f"story-{row['id']}": row["text"]
        for row in map(json.loads, (SHARED / "data/tinystories/stories.jsonl").read_text().splitlines())
    }
    documents = {document.id: document for document in read_documents(made / "documents.jsonl")}
    rows = read_on(made / "on.jsonl", documents, seed=0)
    asked = [row for row in rows if row.split == "eval"]
    assert {row.document for row in asked} == set(documents)
    for row in asked:
        rest = stories[row.document].removeprefix(documents[row.document].text)
        assert rest.strip().startswith(row.prompt)
        assert normalised(rest).startswith(normalised(row.prompt + row.answer))
        assert row.answer.strip() in documents[row.document].text


def test_training_prompts_are_true_to_the_story_and_not_the_evaluation_prompt(made: Path) -> None:
    stories = {
        f"story-{row['id']}": " ".join(row["text"].split())
        for row in map(json.loads, (SHARED / "data/tinystories/stories.jsonl").read_text().splitlines())
    }
    rows = read_on(made / "on.jsonl", stories, seed=0)
    evaluation = {row.document: normalised(row.prompt) for row in rows if row.split == "eval"}
    train = [row for row in rows if row.split == "train"]
    assert {row.document for row in train} == set(evaluation)
    for row in train:
        assert row.prompt + row.answer in stories[row.document]
        assert not normalised(row.prompt).startswith(evaluation[row.document])


def test_off_prompts_are_long_enough_and_no_part_of_any_document(
    made: Path, stories260k: FastTokenizer
) -> None:
    texts = [normalised(document.text) for document in read_documents(made / "documents.jsonl")]
    for row in read_off(made / "off.jsonl").unsplit:
        length = len(encode_prompt(stories260k, row.prompt, name=row.id)) - 1
        assert 20 <= length <= 48, row
        assert row.prompt == row.prompt.strip()
        assert not any(normalised(row.prompt) in text for text in texts), row
        assert not normalised(row.prompt).startswith("once upon a time")


@pytest.mark.slow
def test_making_them_again_gives_the_same_files(made: Path, tmp_path: Path) -> None:
    script.write(script.make(SHARED), tmp_path)
    for name in ("documents", "on", "off"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (made / f"{name}.jsonl").read_bytes()


def test_without_the_material_one_clear_error_and_nothing_written(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--shared",
        str(tmp_path / "absent"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"make_stories: error: {tmp_path}/absent/data/tinystories/name_cloze.jsonl: cannot be read"
    )
    assert "--shared" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_cloze_asks_for_the_last_wanted_word_behind_three_others() -> None:
    sentence = "One day, Tim saw that Lily was with Sue's dog."
    assert script.cloze(sentence, {"Tim", "Lily"}) == ("One day, Tim saw that", " Lily")
    assert script.cloze(sentence, {"Lily", "Sue"}) == ("One day, Tim saw that Lily was with", " Sue")
    assert script.cloze(sentence, {"Tim", "day"}) is None
    assert script.cloze('"Hi," said the "Lily" dog', {"Lily"}) is None
