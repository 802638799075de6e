from __future__ import annotations

import json
from pathlib import Path

import pytest

from cedkv.config import Config
from cedkv.core.errors import UserError
from cedkv.data.build import build_corpus
from cedkv.data.records import hashes, normalised

Rows = dict[str, list[dict[str, str]]]


@pytest.fixture
def rows() -> Rows:
    """Four documents with two ON prompts each, and twelve OFF prompts."""
    names = ["ada", "bo", "cy", "di"]
    return {
        "documents": [{"id": name, "text": f"{name} is number {n}."} for n, name in enumerate(names)],
        "on": [
            {"document": name, "prompt": prompt, "answer": f" {n}"}
            for n, name in enumerate(names)
            for prompt in (f"{name} is number", f"The number of {name} is")
        ],
        "off": [{"prompt": f"{n} plus one is"} for n in range(12)],
    }


@pytest.fixture
def build(tmp_path: Path, rows: Rows):
    """Write ``rows`` and build the corpus from them, with sizes on, train, stress, sealed."""

    def run(on: int = 3, train: int = 4, stress: int = 5, sealed: int = 8192, **data: object):
        for name, content in rows.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
        files = {name: f"{name}.jsonl" for name in rows}
        sizes = {
            "on_samples": on,
            "off_samples": train,
            "off_fixed_stress": {"size": stress},
            "off_sealed": {"size": sealed},
        }
        small = {"loss": {"off": {"hard_pool_size": 1}}, "train": {"off_batch": 1}}
        config = Config.model_validate(
            {
                "base_dir": str(tmp_path),
                "data": {"source": "jsonl", **files, **data},
                "phase3": {"eval": sizes, **small},
            }
        )
        return build_corpus(config)

    return run


def test_a_corpus_from_files_has_the_sizes_of_the_configuration(build) -> None:
    corpus = build()
    assert [document.id for document in corpus.documents] == ["ada", "bo", "cy"]
    assert [len(part) for part in (corpus.on_train, corpus.on_eval)] == [3, 3]
    assert {row.document for row in corpus.on_eval} == {"ada", "bo", "cy"}
    assert [len(part) for part in (corpus.off_train, corpus.stress, corpus.sealed)] == [4, 5, 3]


def test_reordering_the_prompt_files_changes_no_off_set_and_no_split(build, rows: Rows) -> None:
    first = build()
    rows["off"].reverse()
    rows["on"].reverse()
    second = build()
    assert set(first.on_eval) == set(second.on_eval)
    for name in ("documents", "off_train", "stress", "sealed"):
        assert hashes(first)[name] == hashes(second)[name]


def test_the_data_seed_moves_the_on_split_but_not_the_stress_set(build) -> None:
    first, others = build(), [build(seed=seed) for seed in range(8)]
    assert all(corpus.stress == first.stress for corpus in others)
    assert len({corpus.on_eval for corpus in others}) > 1


def test_splits_that_the_off_file_states(build, rows: Rows) -> None:
    names = ["train"] * 4 + ["stress"] * 6 + ["sealed"] * 2
    rows["off"] = [{**row, "split": name} for row, name in zip(rows["off"], names, strict=True)]
    corpus = build()
    stated = {normalised(row["prompt"]): row["split"] for row in rows["off"]}
    for name, part, size in (
        ("train", corpus.off_train, 4),
        ("stress", corpus.stress, 5),
        ("sealed", corpus.sealed, 2),
    ):
        assert [stated[normalised(row.prompt)] for row in part] == [name] * size
    with pytest.raises(
        UserError, match=r"off\.jsonl: 4 distinct .*split 'train', but phase3\.eval\.off_samples"
    ):
        build(train=5)


def test_too_few_documents(build) -> None:
    with pytest.raises(
        UserError, match=r"documents\.jsonl: holds 4 documents, but phase3\.eval\.on_samples asks for 5"
    ):
        build(on=5)


def test_too_few_distinct_off_prompts(build, rows: Rows) -> None:
    rows["off"] += [{"prompt": row["prompt"].upper()} for row in rows["off"]]
    with pytest.raises(
        UserError, match=r"off\.jsonl: 12 distinct OFF prompts of 24 given, but 13 are needed"
    ):
        build(train=8)


def test_documents_without_prompts_are_all_named(build, rows: Rows) -> None:
    rows["on"] = [row for row in rows["on"] if row["document"] != "bo"][:-1]
    with pytest.raises(
        UserError,
        match=r"on\.jsonl: no ON prompt for document 'bo' \(train\), 'di' \(train\), 'bo' \(eval\);",
    ):
        build(on=4)


def test_an_off_prompt_that_a_document_answers_is_refused(build, rows: Rows) -> None:
    rows["off"][3]["prompt"] = "ADA is  number"
    with pytest.raises(UserError, match=r"is also ON prompt .* of document 'ada'"):
        build(train=6, stress=6)


def test_prompts_of_documents_that_are_not_used_do_not_count(build, rows: Rows) -> None:
    rows["off"][3]["prompt"] = "di is number"
    assert "di is number" in {
        row.prompt for row in build(train=6, stress=6).off_train + build(train=6, stress=6).stress
    }


def test_a_missing_file_is_named_with_its_full_path(build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/absent.jsonl: cannot be read"):
        build(off="absent.jsonl")
