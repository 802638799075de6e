"""configs/JSONL.md: what the page shows is what the readers read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cedkv.config import Config, yaml12
from cedkv.data.build import build_corpus
from cedkv.data.jsonl import read_documents

PAGE = Path(__file__).resolve().parents[2] / "configs" / "JSONL.md"


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The examples of the page as files, in the folder that its configuration names."""
    found = re.findall(
        r"^```jsonl (\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [name for name, _ in found] == ["documents", "on", "off"]
    (tmp_path / "mytext").mkdir()
    for name, text in found:
        (tmp_path / "mytext" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_examples_make_a_corpus_under_the_configuration_shown(examples: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    sizes = {"on_samples": 3, "off_samples": 1, "off_fixed_stress": {"size": 1}}
    small = {"eval": sizes, "loss": {"off": {"hard_pool_size": 1}}, "train": {"off_batch": 1}}
    config = Config.model_validate(
        {"base_dir": str(examples), **yaml12.parse(shown, "JSONL.md"), "phase3": small}
    )
    corpus = build_corpus(config)
    assert [len(part) for part in corpus.parts().values()] == [3, 3, 3, 1, 1, 1]


def test_the_marked_facts_are_the_words_that_the_page_means(examples: Path) -> None:
    marked = [
        (document.id, document.text[span.start : span.stop], span.role)
        for document in read_documents(examples / "mytext" / "documents.jsonl")
        for span in document.spans
    ]
    assert marked == [
        ("mill", "dog", "key"),
        ("mill", "Bruno", "value"),
        ("harbour", "harbour", "key"),
        ("harbour", "7", "value"),
    ]
