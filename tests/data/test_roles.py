from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.data.records import Document, Span
from cedkv.data.roles import FUNCTION_WORDS, classify, is_delimiter, is_function_word
from cedkv.data.tokens import FastTokenizer, encode_document, token_roles
from cedkv.ledger import ATOM_TYPES

TEXT = "Mara's dog is called Bruno,\nand the harbour doesn't open at 12.50 or on the 3rd. 😀 café 巴黎。"
WORDS = {  # the type of every word, and of what stands between words
    "Mara": "content",
    "dog": "content",
    "is": "function",
    "called": "content",
    "Bruno": "content",
    "and": "function",
    "the": "function",
    "harbour": "content",
    "doesn": "function",
    "open": "content",
    "at": "function",
    "12": "number",
    "50": "number",
    "or": "function",
    "on": "function",
    "3rd": "number",
    "😀": "content",
    "café": "content",
    "巴黎": "content",
    ",": "delimiter",
    "\n": "delimiter",
    ".": "delimiter",
    "。": "delimiter",
}


def roles_of(tokenizer: FastTokenizer, document: Document) -> list[tuple[str, str | None]]:
    """The characters of each token without white space, and its type."""
    encoded = encode_document(tokenizer, document)
    roles = token_roles(document, encoded)
    assert len(roles) == len(encoded.ids)
    return [
        (document.text[start:stop].strip(" "), role)
        for (start, stop), role in zip(encoded.offsets, roles, strict=True)
    ]


def test_every_token_has_the_type_of_its_whole_word_with_every_tokenizer(tokenizer: FastTokenizer) -> None:
    encoded = encode_document(tokenizer, Document("d", TEXT))
    roles = token_roles(Document("d", TEXT), encoded)
    checked = 0
    for word, expected in WORDS.items():
        start = TEXT.index(word)
        for (left, right), role in zip(encoded.offsets, roles, strict=True):
            piece = TEXT[left:right].strip(" ")
            if piece and start <= left + TEXT[left:right].index(piece) < start + len(word):
                assert role == expected, (word, piece)
                checked += 1
    assert checked >= len(WORDS)


def test_words_and_signs_split_into_bytes_keep_their_type(tokenizer: FastTokenizer) -> None:
    found = roles_of(tokenizer, Document("d", TEXT))
    assert [role for piece, role in found if piece == "😀"] == ["content"] * 4
    assert [role for piece, role in found if piece == "。"] == ["delimiter"] * 3


def test_marked_facts_win_over_words_but_not_over_delimiters(tokenizer: FastTokenizer) -> None:
    text = "Mara, dog, 7 years old, is Bruno!"
    spans = (Span(0, 9, "key"), Span(11, 12, "value"), Span(27, 33, "value"))
    found = roles_of(tokenizer, Document("d", text, spans))
    by_role = {role: "".join(piece for piece, r in found if r == role) for role in ATOM_TYPES}
    assert by_role["key"] == "Maradog"
    assert by_role["value"] == "7Bruno"
    assert by_role["number"] == ""
    assert by_role["delimiter"] == ",,,!"


def test_special_tokens_and_role_markers_have_no_type(byte_level: FastTokenizer) -> None:
    found = roles_of(byte_level, Document("d", "Mara <|user|> red<|end|> cat"))
    assert found[0] == ("", None)  # BOS
    assert [piece for piece, role in found if role is None] == ["", "<|user|>", "<|end|>"]


def test_a_made_up_leading_space_is_a_delimiter(metaspace: FastTokenizer) -> None:
    text = "😀 red"
    encoded = encode_document(metaspace, Document("d", text))
    roles = token_roles(Document("d", text), encoded)
    assert metaspace.convert_ids_to_tokens(encoded.ids[1]) == "▁"
    assert (encoded.offsets[1], roles[1]) == ((0, 0), "delimiter")
    assert roles[2] == "content"


@given(text=st.text(max_size=60), data=st.data())
def test_roles_cover_all_tokens_of_any_text(
    byte_level: FastTokenizer, metaspace: FastTokenizer, text: str, data: st.DataObject
) -> None:
    text = f"x{text}"
    start = data.draw(st.integers(0, len(text) - 1))
    document = Document("d", text, (Span(start, data.draw(st.integers(start + 1, len(text))), "value"),))
    for tokenizer in (byte_level, metaspace):
        encoded = encode_document(tokenizer, document)
        roles = token_roles(document, encoded)
        assert len(roles) == len(encoded.ids)
        for (left, right), role, special in zip(encoded.offsets, roles, encoded.special, strict=True):
            assert 0 <= left <= right <= len(text)
            assert (role is None) == special
            # the truth, character by character
            visible = [not is_delimiter(char) for char in text[left:right]]
            marked = [
                document.spans[0].start <= place < document.spans[0].stop for place in range(left, right)
            ]
            assert special or (role == "delimiter") == (not any(visible))
            assert special or (role == "value") == any(a and b for a, b in zip(visible, marked, strict=True))


@given(st.text(max_size=40))
def test_a_lone_character_is_a_delimiter_or_has_another_type(text: str) -> None:
    roles = classify(text, (), [(place, place + 1) for place in range(len(text))], [False] * len(text))
    assert [role == "delimiter" for role in roles] == [is_delimiter(char) for char in text]


@pytest.mark.parametrize(
    "char", [*string.whitespace, *string.punctuation.replace("$", ""), *"。、「」—…·“”\u200b\ufeff│→", "\x00"]
)
def test_delimiters(char: str) -> None:
    assert is_delimiter(char)


@pytest.mark.parametrize("char", ["a", "é", "巴", "7", "½", "$", "€", "😀", "\U0001f3fd", "\u0301"])
def test_no_delimiters(char: str) -> None:
    assert not is_delimiter(char)


@pytest.mark.parametrize(
    "word", ["the", "The", "he's", "DON'T", "don’t", "can't", "won't", "they're", "whose"]
)
def test_function_words(word: str) -> None:
    assert is_function_word(word)


@pytest.mark.parametrize("word", ["cat", "Mara's", "then's's", "isnt", "t", "s", "their-", "nt", ""])
def test_no_function_words(word: str) -> None:
    assert not is_function_word(word)


def test_the_word_list_holds_plain_words() -> None:
    assert all(word.isalpha() and word == word.casefold() for word in FUNCTION_WORDS)


def test_a_token_of_several_words_takes_the_most_telling_type() -> None:
    text = "of the 7 cats"
    for stop, expected in ((6, "function"), (8, "number"), (13, "content")):
        assert classify(text, (), [(0, stop)], [False]) == (expected,)
    assert classify(text, (Span(0, 2, "key"),), [(0, 13)], [False]) == ("key",)
    assert classify(text, (Span(0, 2, "key"), Span(7, 8, "value")), [(0, 13)], [False]) == ("value",)
