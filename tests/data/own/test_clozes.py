"""Prompts made by rule: what every one of them keeps, whatever the text and the tokenizer."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedkv.cli.own import BY_RULE as KINDS
from cedkv.data.own.asked import Asked, split_on
from cedkv.data.own.clozes import LEFT_WORDS, PER_DOCUMENT, Kind, ask_by_rule, sentences
from cedkv.data.records import Document, normalised
from cedkv.data.tokens import FastTokenizer, encode_on

_WORDS = "Mara the harbour opens at 7 and boats 12.50 leave Bruno by noon garden reddish doesn't fox jump New York of"
word = st.sampled_from(_WORDS.split())
sentence = st.builds(
    lambda parts, end: " ".join(parts) + end,
    st.lists(word, min_size=1, max_size=14),
    st.sampled_from([". ", "! ", ".\n", "\n\n", '." ', ", said Mara. ", "\n- "]),
)
corpora = st.lists(st.lists(sentence, min_size=1, max_size=8).map("".join), min_size=1, max_size=3).map(
    lambda texts: [Document(f"d{n}", text) for n, text in enumerate(texts)]
)


@pytest.fixture(params=["byte_level", "trimming", "metaspace", "embedded"])
def kind_of_tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    return request.getfixturevalue(request.param)


def in_words(text: str) -> list[str]:
    """The words of a text as `normalised`, written again for the test."""
    return re.findall(r"\w+(?:['’.,:/-]\w+)*", normalised(text))


@given(documents=corpora, seed=st.integers(0, 3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_prompt_keeps_what_is_promised(
    kind_of_tokenizer: FastTokenizer, documents: list[Document], seed: int
) -> None:
    made = ask_by_rule(documents, kind_of_tokenizer, kinds=KINDS, seed=seed)
    assert made == ask_by_rule(documents, kind_of_tokenizer, kinds=KINDS, seed=seed)
    windows = Counter(
        tuple(words[n : n + LEFT_WORDS])
        for words in (in_words(document.text) for document in documents)
        for n in range(len(words))
    )
    for document in documents:
        for one in made[document.id]:
            assert one.prompt + one.answer in document.text
            encode_on(kind_of_tokenizer, one.prompt, one.answer)  # ends at a token boundary
            assert windows[tuple(in_words(one.prompt)[-LEFT_WORDS:])] == 1
            assert one.answer.startswith(" ")
            if one.kind == "cloze":
                assert f" {' '.join(in_words(one.answer))} " not in f" {' '.join(in_words(one.prompt))} "
        assert len(made[document.id]) <= PER_DOCUMENT
    prompts = [normalised(one.prompt) for asked in made.values() for one in asked]
    assert len(set(prompts)) == len(prompts)


@given(documents=corpora, seed=st.integers(0, 3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_evaluation_asks_about_sentences_that_training_never_does(
    embedded: FastTokenizer, documents: list[Document], seed: int
) -> None:
    made = ask_by_rule(documents, embedded, kinds=KINDS, seed=seed)
    for document in documents:
        rows = split_on(made[document.id], seed)
        spans: dict[str, set[int]] = {"train": set(), "eval": set()}
        for row, one in zip(rows, made[document.id] if rows else [], strict=True):
            assert (row.prompt, row.answer, row.document) == (one.prompt, one.answer, document.id)
            begin = document.text.index(one.prompt + one.answer)
            start = begin + len(one.prompt)
            spans[row.split] |= set(range(start, start + len(one.answer)))
        assert not spans["train"] & spans["eval"]
        groups = {one.group for one in made[document.id]}
        assert bool(rows) == (len(groups) > 1)
        if rows:
            assert {row.split for row in rows} == {"train", "eval"}


def asked_of(text: str, tokenizer: FastTokenizer, *kinds: Kind) -> list[tuple[str, str]]:
    found = ask_by_rule([Document("d", text)], tokenizer, kinds=kinds or ("cloze",), seed=0)["d"]
    return [(one.prompt, one.answer) for one in found]


def test_numbers_and_names_are_asked_for_before_other_words(byte_level: FastTokenizer) -> None:
    text = (
        "On the quay we saw that Greta Olsen paid 12.50 for a very fresh herring near the Wednesday market."
    )
    assert asked_of(text, byte_level) == [
        ("On the quay we saw that", " Greta Olsen"),
        ("On the quay we saw that Greta Olsen paid", " 12.50"),
        ("On the quay we saw that Greta Olsen paid 12.50 for a very fresh herring near the", " Wednesday"),
    ]


def test_of_words_that_tell_little_the_rarest_are_taken(byte_level: FastTokenizer) -> None:
    text = "the keeper lit the great lamp after sunset today. it is a lamp."
    assert [answer for _, answer in asked_of(text, byte_level)] == [" great", " sunset", " today"]


def test_an_answer_that_the_prompt_names_is_not_asked_for(byte_level: FastTokenizer) -> None:
    assert all(a != " Bruno" for _, a in asked_of("Bruno ran home to find that Bruno was there.", byte_level))


def test_what_follows_the_same_words_twice_is_not_asked_for(byte_level: FastTokenizer) -> None:
    text = "In the end she went to Paris. Years later in the end she went to Oslo for good."
    assert not {" Paris", " Oslo"} & {answer for _, answer in asked_of(text, byte_level)}
    other = text.replace("end she went to Oslo", "end he flew to Oslo")
    assert {" Paris", " Oslo"} <= {answer for _, answer in asked_of(other, byte_level)}


def test_a_continuation_is_the_rest_of_a_sentence_or_its_next_words(byte_level: FastTokenizer) -> None:
    text = "The boats must leave the harbour by noon. The ferry over there leaves whenever the last of the cars is on board."
    assert asked_of(text, byte_level, "continuation") == [
        ("The boats must leave", " the harbour by noon"),
        ("The ferry over there leaves whenever the", " last of the cars"),
    ]


def test_code_tables_and_short_sentences_are_left_alone(byte_level: FastTokenizer) -> None:
    text = "Yes it is.\n\n| 1 | 2.5 | 3.5 | 4 | 5 |\n\nx = f(a, b) + g(c[0], d[1]); y += 1 << 3\n\nIt rains."
    assert asked_of(text, byte_level, *KINDS) == []


def test_sentences_headings_and_items_are_found_without_their_marks() -> None:
    text = '# Title\n\nFirst one. "Second one!" she said.\n- an item\n2) another\nwith a second line\n\nEnd'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Title",
        "First one.",
        '"Second one!"',
        "she said.",
        "an item",
        "another\nwith a second line",
        "End",
    ]


def test_a_quarter_of_the_groups_is_evaluated() -> None:
    asked = [
        Asked("d", "cloze", f"cloze-{n}", f"sentence-{n // 2}", f"p{n}", f"p{n}", " a") for n in range(18)
    ]
    rows = split_on(asked, 1)
    assert sum(row.split == "eval" for row in rows) == 2 * 3  # of nine sentences
    assert {row.id: row.split for row in split_on(asked[::-1], 1)} == {row.id: row.split for row in rows}
    assert any(split_on(asked, seed) != rows for seed in range(2, 6))
    assert split_on(asked[:2], 1) == []
