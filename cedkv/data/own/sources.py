"""Files of text as documents: read, and cut where one is longer than a memory stands for.

A piece is a part of its source, word for word, cut between paragraphs where it can be, else between sentences, else
between words.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cedkv.core.errors import UserError
from cedkv.data.lines import Problems, read_rows, text_fault
from cedkv.data.records import Document
from cedkv.data.tokens import encode_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cedkv.data.tokens import FastTokenizer

SUFFIXES: Final = (".txt", ".md")
DOCUMENT_TOKENS: Final = 512
"""Tokens of a document, at most: a few slots do not stand for more."""
MAX_BYTES: Final = 8 * 2**20
_CUTS = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\n"),
    re.compile(r"\s+"),
)
"""Where a text may be cut: behind a paragraph, a sentence or a line, a word."""
_BLANKS = re.compile(r"\s*")
_EDGE = 8  # tokens; a part's first and last word may be other tokens than within the whole


@dataclass(frozen=True, slots=True)
class Source:
    """One text of the user's, by a name that no other has."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A document and the name of the source it is a part of."""

    document: Document
    source: str


def read_sources(paths: Iterable[Path]) -> list[Source]:
    """The texts at ``paths``: text files, folders of them (and their folders), JSONL files of rows with a ``text``.

    Raises:
        UserError: what cannot be read as UTF-8 text, is of another kind, or holds no text at all.
    """
    taken: set[str] = set()
    sources: list[Source] = []
    for name, text in (found for path in paths for found in _read(path)):
        if text.strip():
            named = name.encode(errors="replace").decode()  # file systems allow what is no text
            sources.append(Source(_unlike(named, taken), text))
    if not sources:
        raise UserError("--from names no text: every file is empty; name files that hold some")
    return sources


def cut(sources: Iterable[Source], tokenizer: FastTokenizer, limit: int) -> list[Piece]:
    """The sources as documents of at most ``limit`` tokens each (BOS counted)."""
    sources = list(sources)
    pieces: list[Piece] = []
    taken = {source.name for source in sources}
    for source in sources:
        parts = list(_parts(source.text, source.name, tokenizer, limit))
        for number, text in enumerate(parts, 1):
            name = source.name if len(parts) == 1 else _unlike(f"{source.name}#{number}", taken)
            pieces.append(Piece(Document(name, text), source.name))
    return pieces


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of everything at ``path``."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_text(file.relative_to(path)))
        if not files:
            raise UserError(
                f"{path}: holds no file of text; name a folder with {' or '.join(SUFFIXES)} files in it"
            )
        for file in files:
            yield file.relative_to(path).with_suffix("").as_posix(), _text(file)
    elif path.suffix.lower() == ".jsonl":
        yield from _rows(path)
    elif path.suffix.lower() in SUFFIXES or not path.exists():
        yield path.stem, _text(path)
    else:
        raise UserError(
            f"{path}: is no file that is read as text; give {', '.join(SUFFIXES)} files, a folder of them, or a .jsonl "
            "file of rows with a 'text'"
        )


def _is_text(inside: Path) -> bool:
    """Whether a path within a folder is taken: hidden files and folders are not."""
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and inside.suffix.lower() in SUFFIXES


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path}: is larger than {MAX_BYTES >> 20} MiB; give the part that memories are for"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start + 1} (0x{error.object[error.start]:02x}) is not UTF-8; save the file as UTF-8 text"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a readable file"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}: holds the NUL character, which no text does; save the file as plain UTF-8 text"
        )
    return _plain(text)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """The texts of a JSONL file; whatever else its rows hold is left alone."""
    problems = Problems(path)
    for row in read_rows(path, problems):
        if "text" not in row.data:
            row.fail("key 'text' is missing; every row of a file of documents needs it")
        text, name = row.text("text"), row.data.get("id")
        if row.ok:
            named = (
                isinstance(name, int) or text_fault(name) is None
            )  # other people's files number their rows
            yield f"{path.stem}-{row.line}" if not named else str(name), _plain(text)
    problems.check()


def _plain(text: str) -> str:
    """The text with line feeds as its line ends, and without blanks at the ends of lines and of the whole."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _unlike(name: str, taken: set[str]) -> str:
    """``name``, numbered where another text has it."""
    chosen = next(n for n in _numbered(name) if n not in taken)
    taken.add(chosen)
    return chosen


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _parts(text: str, name: str, tokenizer: FastTokenizer, limit: int) -> Iterator[str]:
    """The text in parts of at most ``limit`` tokens, as long and as whole as may be."""
    encoded = encode_document(tokenizer, Document(name, text))
    starts = [
        start for (start, _), special in zip(encoded.offsets, encoded.special, strict=True) if not special
    ]
    room = limit - (len(encoded.ids) - len(starts)) - _EDGE
    begin = _behind_blanks(text, 0)
    while begin < len(text):
        after = bisect_left(starts, begin) + room
        stop = len(text) if after >= len(starts) else _last_good(text, begin, starts[after])
        yield text[begin:stop].rstrip()
        begin = _behind_blanks(text, stop)


def _behind_blanks(text: str, begin: int) -> int:
    match = _BLANKS.match(text, begin)
    return begin if match is None else match.end()


def _last_good(text: str, begin: int, end: int) -> int:
    """The best place to cut ``text`` at or before ``end``."""
    for pattern in _CUTS:
        places = [match.end() for match in pattern.finditer(text, begin, end)]
        # A paragraph that ends early would leave a document of a few words.
        if places and places[-1] - begin >= (end - begin) // 2:
            return places[-1]
    return end
