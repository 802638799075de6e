"""A corpus as token ids: what the teacher reads, what a bare prompt is, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from cedkv.core.errors import UserError
from cedkv.data.batching import every_nth
from cedkv.data.encode import encode_corpus
from cedkv.data.records import Corpus, Document, OffPrompt, OnPrompt, Span

TEXT = "Mara's dog is called Bruno. The harbour opens at 7."
CORPUS = Corpus(
    (
        Document("tale", TEXT, (Span(0, 4, "key"), Span(21, 26, "value"))),
        Document("other", "a red cat, and it said: that is the opposite of blue."),
    ),
    (
        OnPrompt("t0", "other", "The cat is", " red", "train"),
        OnPrompt("t1", "tale", "The dog is called", " Bruno", "train"),
    ),
    (OnPrompt("e0", "tale", "Mara's dog is called", " Bruno", "eval"),),
    (OffPrompt("o0", "The opposite of blue is", "opposite"),),
    (OffPrompt("s0", "boats must leave by", "world"), OffPrompt("s1", "The quick brown", "world")),
)


@pytest.fixture
def encode(small_config, byte_level):
    def run(*overrides: str, corpus: Corpus = CORPUS, tokenizer=byte_level, context: int = 200):
        return encode_corpus(small_config(*overrides), corpus, tokenizer, context)

    return run


def plain(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_prompts_and_documents_begin_with_bos_and_answers_do_not(encode, byte_level):
    encoded, bos = encode(), byte_level.bos_token_id
    assert [context.id for context in encoded.contexts] == ["tale", "other"]
    assert encoded.contexts[0].ids == (bos, *plain(byte_level, TEXT))
    first = encoded.on_train[0]
    assert first.prompt == (bos, *plain(byte_level, "The cat is"))
    assert first.answer == plain(byte_level, " red")
    assert [row.document for row in encoded.on_train] == [1, 0]
    assert [row.source.id for row in encoded.on_eval] == ["e0"]
    assert encoded.off_train[0].prompt == (bos, *plain(byte_level, "The opposite of blue is"))
    assert [row.source.id for row in encoded.stress] == ["s0", "s1"]


def test_every_token_of_a_document_has_a_type_and_bos_has_none(encode):
    context = encode().contexts[0]
    assert len(context.types) == len(context.ids)
    assert context.types[0] is None
    assert None not in context.types[1:]
    assert {"key", "value", "number", "delimiter"} <= set(context.types[1:])


def test_a_repeated_bos_is_kept_behind_the_document_and_otherwise_skipped(encode, metaspace, trimming):
    assert encode("data.repeat_bos=true").skipped == 0
    assert encode("data.repeat_bos=false").skipped == 1
    assert encode("data.repeat_bos=false", tokenizer=metaspace).skipped == 1
    assert encode("data.repeat_bos=false", tokenizer=trimming).skipped == 0  # it has no BOS


def test_the_separator_is_part_of_what_the_teacher_reads_and_a_delimiter(encode, byte_level):
    bare, separated = encode().contexts[0], encode(r'data.document_separator="\n\n"').contexts[0]
    assert separated.ids[: len(bare.ids)] == bare.ids
    assert byte_level.decode(separated.ids[len(bare.ids) :]) == "\n\n"
    assert set(separated.types[len(bare.ids) :]) == {"delimiter"}


def test_document_prompt_and_answer_must_fit_the_context_together(encode):
    encoded = encode()
    sizes = [
        len(encoded.contexts[row.document].ids) + len(row.prompt) + len(row.answer)
        for row in (*encoded.on_train, *encoded.on_eval)
    ]
    assert encode(context=max(sizes)).contexts == encoded.contexts
    with pytest.raises(
        UserError,
        match=r"ON prompt '\w+': \d+ \(document\) \+ .*\(prompt\) .*\(answer\) .* model's context of \d+",
    ):
        encode(context=max(sizes) - 1)
    assert encode("data.repeat_bos=false", context=max(sizes) - 1)  # one BOS less behind the document


def test_an_off_prompt_must_fit_the_context_alone(encode):
    long = replace(CORPUS, stress=(OffPrompt("s9", "boats " * 300, "world"),))
    with pytest.raises(
        UserError, match=r"OFF prompt 's9': \d+ \(prompt\) = \d+ tokens, more than the model's context of 200"
    ):
        encode(corpus=long)


def test_an_answer_that_begins_inside_a_token_is_refused_with_its_remedy(encode):
    glued = replace(CORPUS, on_train=(OnPrompt("t0", "tale", "it is a red", "dish", "train"),))
    with pytest.raises(
        UserError, match=r"ON prompt 't0': .* meet inside a token: .* start the answer with a space"
    ):
        encode(corpus=glued)


def test_an_answer_without_tokens_is_refused(encode):
    nothing = replace(CORPUS, on_eval=(OnPrompt("e0", "tale", "The dog is", "", "eval"),))
    with pytest.raises(UserError, match=r"ON prompt 'e0': answer '' adds no token"):
        encode(corpus=nothing)


@pytest.mark.parametrize("part", ["off_train", "stress"])
def test_without_off_prompts_nothing_can_be_shown(encode, part):
    with pytest.raises(UserError, match="no OFF prompts"):
        encode(corpus=replace(CORPUS, **{part: ()}))


@pytest.mark.parametrize(("count", "size"), [(0, 4), (3, 4), (4, 4), (5, 4), (1000, 7)])
def test_every_nth_is_spread_over_the_whole(count, size):
    found = every_nth(range(count), size)
    assert len(found) == min(count, size)
    assert found == sorted(set(found))
    if count > size:
        gaps = {b - a for a, b in pairwise(found)}
        assert max(gaps) - min(gaps) <= 1
        assert count - found[-1] <= max(gaps) + 1
