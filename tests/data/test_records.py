from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.core.hashing import content_hash
from cedkv.data.records import (
    Corpus,
    Document,
    OffPrompt,
    OnPrompt,
    Span,
    check_disjoint,
    hashes,
    normalised,
)

CORPUS = Corpus(
    documents=(
        Document("a", "Bo is red.", (Span(0, 2, "key"), Span(6, 9, "value"))),
        Document("b", "Ada is blue."),
    ),
    on_train=(
        OnPrompt("a-1", "a", "Bo is", " red", "train"),
        OnPrompt("b-1", "b", "Ada is", " blue", "train"),
    ),
    on_eval=(
        OnPrompt("a-2", "a", "What is Bo?", " red", "eval"),
        OnPrompt("b-2", "b", "Ada:", " blue", "eval"),
    ),
    off_train=(OffPrompt("o1", "two and two", "sums"),),
    stress=(OffPrompt("o2", "three and three", "sums"), OffPrompt("o3", "up and", "opposites")),
    sealed=(OffPrompt("o4", "four and four", "sums"),),
)


def test_a_consistent_corpus_passes() -> None:
    check_disjoint(CORPUS)


def test_the_same_question_may_be_asked_about_two_documents() -> None:
    twice = OnPrompt("b-3", "b", "What is Bo?", " blue", "train")
    check_disjoint(dataclasses.replace(CORPUS, on_train=(*CORPUS.on_train, twice)))


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        (
            "stress",
            OffPrompt("o9", "TWO  and\ntwo ", "sums"),
            "stress prompt 'o9'.*content of off_train prompt 'o1'",
        ),
        ("stress", OffPrompt("o9", "up and", "sums"), "content of stress prompt 'o3'"),
        ("sealed", OffPrompt("o9", "three and three", "sums"), "sealed prompt 'o9'.*stress prompt 'o2'"),
        (
            "off_train",
            OffPrompt("o9", "ada IS", "x"),
            "off_train prompt 'o9'.*ON prompt 'b-1' of document 'b'",
        ),
        ("sealed", OffPrompt("o9", "What is Bo?", "x"), "ON prompt 'a-2' of document 'a'"),
        ("stress", OffPrompt("o2", "something else", "x"), "stress: id 'o2' occurs more than once"),
        ("on_eval", OnPrompt("a-3", "a", "bo  is", " red", "eval"), "'a-3'.*training prompt 'a-1'"),
        ("on_train", OnPrompt("a-3", "c", "Who?", " red", "train"), "names document 'c'.*2 documents"),
        ("documents", Document("a", "Other."), "documents: id 'a' occurs more than once"),
    ],
)
def test_each_overlap_is_refused_by_name(part: str, row: object, message: str) -> None:
    broken = dataclasses.replace(CORPUS, **{part: (*getattr(CORPUS, part), row)})
    with pytest.raises(UserError, match=message):
        check_disjoint(broken)


def test_composed_and_decomposed_letters_are_the_same_content() -> None:
    composed, decomposed = "Caf\u00e9 is", "CAFE\u0301   is"
    assert normalised(composed) == normalised(decomposed)
    broken = dataclasses.replace(
        CORPUS, off_train=(OffPrompt("x", composed, "f"),), sealed=(OffPrompt("y", decomposed, "f"),)
    )
    with pytest.raises(UserError, match="distinct within and across sets"):
        check_disjoint(broken)


@given(st.text())
def test_normalising_is_idempotent_and_blind_to_composition(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(text)


def test_the_hash_is_that_of_the_canonical_lines() -> None:
    rows = [{"b": "é", "a": 1}, {"a": [1, 2]}]
    lines = b'{"a":1,"b":"\xc3\xa9"}\n{"a":[1,2]}'
    assert content_hash(rows) == hashlib.sha256(lines).hexdigest()
    assert content_hash([]) == hashlib.sha256(b"").hexdigest()
    assert content_hash(reversed(rows)) != content_hash(rows)


def test_nan_has_no_hash() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_hash([{"a": float("nan")}])


def test_hashes_count_every_part_and_see_every_field() -> None:
    found = hashes(CORPUS)
    assert {name: entry["count"] for name, entry in found.items()} == {
        "documents": 2,
        "on_train": 2,
        "on_eval": 2,
        "off_train": 1,
        "stress": 2,
        "sealed": 1,
    }
    for name, rows in CORPUS.parts().items():
        for field in dataclasses.fields(rows[0]):
            value = getattr(rows[0], field.name)
            other = (Span(0, 1, "value"),) if isinstance(value, tuple) else f"{value}x"
            changed = dataclasses.replace(
                CORPUS, **{name: (dataclasses.replace(rows[0], **{field.name: other}), *rows[1:])}
            )
            assert hashes(changed)[name]["sha256"] != found[name]["sha256"], (name, field.name)


def test_rows_are_json() -> None:
    for rows in CORPUS.parts().values():
        for row in rows:
            assert json.loads(json.dumps(row.row()))["id"] == row.id
