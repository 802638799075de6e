"""scripts/make_stories.py on the real material, where it is present."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

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
DOCUMENTS = 6  # what the model tells of more would take minutes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (SHARED / "data" / "tinystories").is_dir():
        pytest.skip("needs ../shared/data/tinystories")
    folder = tmp_path_factory.mktemp("stories")
    script.write(script.make(SHARED, DOCUMENTS), folder)
    return folder


def test_the_files_make_a_corpus_with_a_stress_set_of_full_scale(made: Path) -> None:
    data = {"source": "jsonl", **{name: f"{name}.jsonl" for name in ("documents", "on", "off")}}
    phase3 = {"eval": {"on_samples": DOCUMENTS, "off_samples": 16384}}
    corpus = build_corpus(Config.model_validate({"base_dir": str(made), "data": data, "phase3": phase3}))
    assert (len(corpus.documents), len(corpus.off_train), len(corpus.stress)) == (DOCUMENTS, 16384, 2048)
    assert len(corpus.sealed) > 2000
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
    assert any("-told-" in row.id for row in train)
    for row in train:
        assert "-told-" in row.id or row.prompt + row.answer in stories[row.document]
        assert not normalised(row.prompt).startswith(evaluation[row.document])


def test_what_the_model_tells_asks_for_names_that_only_the_document_gives_it(
    made: Path, stories260k: FastTokenizer
) -> None:
    """By plain passes, one prompt at a time, with the document in front and without it."""
    model = AutoModelForCausalLM.from_pretrained(str(SHARED / "models" / "stories260K"), dtype="float32")
    documents = {document.id: document for document in read_documents(made / "documents.jsonl")}
    told = [row for row in read_on(made / "on.jsonl", documents, seed=0) if "-told-" in row.id]
    for row in told:
        prompt, answer = encode_on(stories260k, row.prompt, row.answer, name=row.id)
        document = encode_document(stories260k, documents[row.document]).ids
        said = []
        for shown in (document + prompt[1:], prompt):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([shown + answer[:-1]])).logits[0]
            said.append(tuple(logits[-len(answer) :].argmax(-1).tolist()))
        assert said[0] == answer != said[1], row
        assert row.answer.strip() in script.names_in(documents[row.document].text)


def test_off_prompts_are_long_enough_and_no_part_of_any_document(
    made: Path, stories260k: FastTokenizer
) -> None:
    texts = [normalised(document.text) for document in read_documents(made / "documents.jsonl")]
    off = read_off(made / "off.jsonl")
    for row in (*off.stress, *off.sealed, *off.train[::10]):
        length = len(encode_prompt(stories260k, row.prompt, name=row.id)) - 1
        assert 20 <= length <= 48, row
        assert row.prompt == row.prompt.strip()
        assert not any(normalised(row.prompt) in text for text in texts), row
        assert not normalised(row.prompt).startswith("once upon a time")


def test_what_trains_and_what_judges_come_from_different_texts(made: Path) -> None:
    """Prompts that are cut from one story share sentences: the stress set would know what training has seen."""
    off = read_off(made / "off.jsonl")
    sources = [{row.id.rsplit("-", 2)[0] for row in rows} for rows in (off.train, off.stress, off.sealed)]
    assert min(map(len, sources)) > 500
    for one, other in combinations(sources, 2):
        assert not one & other
    documents = {
        document.id.replace("story", "tinystories") for document in read_documents(made / "documents.jsonl")
    }
    assert not documents & set.union(*sources)
    assert max(Counter(row.family for row in off.stress).values()) <= script.OFF_JUDGED_PER_FAMILY


@pytest.mark.slow
def test_making_them_again_gives_the_same_files(made: Path, tmp_path: Path) -> None:
    script.write(script.make(SHARED, DOCUMENTS), tmp_path)
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


def test_no_documents_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(script.UserError, match=r"--documents 0: .* give 1 or more"):
        script.make(tmp_path, 0)


def test_a_cloze_asks_for_the_last_wanted_word_behind_three_others() -> None:
    sentence = "One day, Tim saw that Lily was with Sue's dog."
    assert script.cloze(sentence, {"Tim", "Lily"}) == ("One day, Tim saw that", " Lily")
    assert script.cloze(sentence, {"Lily", "Sue"}) == ("One day, Tim saw that Lily was with", " Sue")
    assert script.cloze(sentence, {"Tim", "day"}) is None
    assert script.cloze('"Hi," said the "Lily" dog', {"Lily"}) is None
