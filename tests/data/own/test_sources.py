"""A user's files as documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.data.own.sources import Source, cut, read_sources
from cedkv.data.records import Document
from cedkv.data.tokens import FastTokenizer, encode_document

blank = st.sampled_from([" ", "  ", "\n", "\n\n", " \n \n"])
texts = st.lists(
    st.tuples(
        st.sampled_from("Mara's dog the harbour opens 7:30 Köln 港は七時 x. end! (noon)".split()), blank
    ),
    min_size=1,
    max_size=160,
).map(lambda parts: "".join(word + space for word, space in parts))


# ----------------------------------------------------------------------------------------------------------- reading
def test_texts_are_read_from_files_folders_and_rows(tmp_path: Path) -> None:
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "b.md").write_bytes("\ufeffSecond.  \r\nLine.\r\n".encode())
    (tmp_path / "notes" / "deep" / "a.TXT").write_text("Third.")
    (tmp_path / "notes" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "notes" / ".hidden.txt").write_text("not taken")
    (tmp_path / "notes" / "empty.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("First.")
    rows = [{"id": 7, "text": "Fourth.", "url": "x"}, {"text": "Fifth."}, {"id": "b", "text": "Sixth."}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_sources([tmp_path / "b.txt", tmp_path / "notes", tmp_path / "more.jsonl"])
    assert [(source.name, source.text) for source in found] == [
        ("b", "First."),
        ("b-2", "Second.\nLine."),
        ("deep/a", "Third."),
        ("7", "Fourth."),
        ("more-2", "Fifth."),
        ("b-3", "Sixth."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.txt", None, "absent.txt: cannot be read (No such file"),
        ("a.txt", b"caf\xe9", "a.txt: byte 4 (0xe9) is not UTF-8; save the file as UTF-8"),
        ("a.txt", b"a\0b", "a.txt: holds the NUL character"),
        ("a.txt", b" \n", "every file is empty"),
        ("a.pdf", b"%PDF", "a.pdf: is no file that is read as text; give .txt, .md files, a folder"),
        ("a.jsonl", b'{"text": ""}', "a.jsonl:1: 'text' is ''; it must not be empty"),
        ("a.jsonl", b'{"txt": "x"}', "a.jsonl:1: key 'text' is missing"),
        ("a.txt", b"x" * (8 * 2**20 + 1), "a.txt: is larger than 8 MiB"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_sources([tmp_path / name])
    assert says in str(error.value)


def test_a_folder_without_text_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no file of text; name a folder with \.txt or \.md files"):
        read_sources([tmp_path])


# ----------------------------------------------------------------------------------------------------------- cutting
@given(text=texts, limit=st.integers(24, 80))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_are_the_source_and_nothing_else_and_fit(
    tokenizer: FastTokenizer, text: str, limit: int
) -> None:
    pieces = [piece.document for piece in cut([Source("a", text)], tokenizer, limit)]
    assert "".join("".join(piece.text for piece in pieces).split()) == "".join(text.split())
    assert len({piece.id for piece in pieces}) == len(pieces)
    begin = 0
    for piece in pieces:
        assert piece.text == piece.text.strip()
        begin = text.index(piece.text, begin) + len(piece.text)
        assert len(encode_document(tokenizer, piece).ids) <= limit
    whole = len(encode_document(tokenizer, Document("a", text)).ids)
    assert len(pieces) <= 1 + 4 * whole // limit  # no crumbs


def test_a_text_is_cut_between_paragraphs_then_sentences_then_words(byte_level: FastTokenizer) -> None:
    sentence = "The harbour opens at seven and closes at nine. "
    paragraph = sentence * 4
    tokens = len(encode_document(byte_level, Document("a", paragraph)).ids)
    by_paragraph = cut([Source("a", f"{paragraph}\n\n{paragraph}\n\n{paragraph}")], byte_level, tokens + 20)
    assert [piece.document.text for piece in by_paragraph] == [paragraph.strip()] * 3
    assert [piece.document.id for piece in by_paragraph] == ["a#1", "a#2", "a#3"]
    by_sentence = cut([Source("a", paragraph * 3)], byte_level, tokens + 20)
    assert all(piece.document.text.endswith("nine.") for piece in by_sentence)
    by_word = cut([Source("a", "harbour " * 200)], byte_level, tokens)
    assert all(set(piece.document.text.split()) == {"harbour"} for piece in by_word)


def test_names_are_unlike_whatever_the_sources_are_called(byte_level: FastTokenizer, tmp_path: Path) -> None:
    long = "The harbour opens at seven. " * 20
    pieces = cut([Source("a#1", "Short."), Source("a", long)], byte_level, 64)
    ids = [piece.document.id for piece in pieces]
    assert len(set(ids)) == len(ids) > 3
    assert ids[:2] == ["a#1", "a#1-2"]
    (tmp_path / "caf\udce9.txt").write_text("Short.")
    assert [source.name for source in read_sources([tmp_path])] == ["caf?"]


def test_a_short_text_is_one_document_with_its_own_name(byte_level: FastTokenizer) -> None:
    (piece,) = cut([Source("notes/mill", "\n  Mara keeps bees.\n")], byte_level, 64)
    assert (piece.document.id, piece.document.text, piece.source) == (
        "notes/mill",
        "Mara keeps bees.",
        "notes/mill",
    )
