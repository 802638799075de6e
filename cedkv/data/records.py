"""What the data consists of, and the two questions asked of all of it: is it disjoint, and which data is it.

An OFF prompt is OFF for every state (design contract, section 4), so the checks look across all documents.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cedkv.core.errors import UserError
from cedkv.core.hashing import content_hash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

Role = Literal["key", "value"]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``stop`` (exclusive) of a document's text that are part of a stated fact."""

    start: int
    stop: int
    role: Role


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a memory is made from. ``spans`` mark its facts, sorted by start, without overlap."""

    id: str
    text: str
    spans: tuple[Span, ...] = ()

    def row(self) -> dict[str, Any]:
        """The document as one JSON row."""
        spans = [{"start": s.start, "stop": s.stop, "role": s.role} for s in self.spans]
        return {"id": self.id, "text": self.text, "spans": spans}


@dataclass(frozen=True, slots=True)
class OnPrompt:
    """A prompt about the document with id ``document``, and the text that should follow it."""

    id: str
    document: str
    prompt: str
    answer: str
    split: Literal["train", "eval"]

    def row(self) -> dict[str, Any]:
        """The prompt as one JSON row."""
        return {
            "id": self.id,
            "document": self.document,
            "prompt": self.prompt,
            "answer": self.answer,
            "split": self.split,
        }


@dataclass(frozen=True, slots=True)
class OffPrompt:
    """A prompt that no document of the corpus answers."""

    id: str
    prompt: str
    family: str

    def row(self) -> dict[str, Any]:
        """The prompt as one JSON row."""
        return {"id": self.id, "prompt": self.prompt, "family": self.family}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything one run reads. ``sealed`` is opened by certification only and may be empty."""

    documents: tuple[Document, ...]
    on_train: tuple[OnPrompt, ...]
    on_eval: tuple[OnPrompt, ...]
    off_train: tuple[OffPrompt, ...]
    stress: tuple[OffPrompt, ...]
    sealed: tuple[OffPrompt, ...] = ()

    def parts(self) -> dict[str, Sequence[Document | OnPrompt | OffPrompt]]:
        """The six parts by the name they have in the log."""
        return {
            "documents": self.documents,
            "on_train": self.on_train,
            "on_eval": self.on_eval,
            "off_train": self.off_train,
            "stress": self.stress,
            "sealed": self.sealed,
        }


def normalised(text: str) -> str:
    """``text`` as it is compared: NFC, case folded, runs of white space as one space, ends stripped."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def hashes(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """``{"count": rows, "sha256": content hash}`` of every part, by the part's name in the log."""
    return {
        name: {"count": len(rows), "sha256": content_hash(row.row() for row in rows)}
        for name, rows in corpus.parts().items()
    }


def check_disjoint(corpus: Corpus) -> None:
    """Raise ``UserError`` unless the parts fit together and share no prompt by `normalised` content.

    Ids are unique within their part and every ON prompt names a document of the corpus. ON training and ON
    evaluation share no (document, prompt). The OFF sets are distinct, each in itself and from one another,
    and no OFF prompt is an ON prompt of any document.
    """
    for name, rows in corpus.parts().items():
        _check_ids(name, [row.id for row in rows])
    on = (*corpus.on_train, *corpus.on_eval)
    _check_references(on, {document.id for document in corpus.documents})
    _check_on_split(corpus.on_train, corpus.on_eval)
    named = {normalised(row.prompt): f"{row.id!r} of document {row.document!r}" for row in on}
    _check_off({"off_train": corpus.off_train, "stress": corpus.stress, "sealed": corpus.sealed}, named)


def _check_ids(name: str, ids: Sequence[str]) -> None:
    repeated = [key for key, times in Counter(ids).items() if times > 1]
    if repeated:
        raise UserError(f"{name}: id {repeated[0]!r} occurs more than once; ids are unique: rename one")


def _check_references(on: Iterable[OnPrompt], known: Collection[str]) -> None:
    for row in on:
        if row.document not in known:
            raise UserError(
                f"ON prompt {row.id!r} names document {row.document!r}, which is not among the {len(known)} "
                "documents; add the document or drop the prompt"
            )


def _check_on_split(train: Iterable[OnPrompt], evaluation: Iterable[OnPrompt]) -> None:
    seen = {(row.document, normalised(row.prompt)): row.id for row in train}
    for row in evaluation:
        other = seen.get((row.document, normalised(row.prompt)))
        if other is not None:
            raise UserError(
                f"ON evaluation prompt {row.id!r} ({row.prompt!r}) is also ON training prompt {other!r} of "
                f"document {row.document!r}; the two sets share no prompt: drop one of the two"
            )


def _check_off(sets: Mapping[str, Sequence[OffPrompt]], on: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, rows in sets.items():
        for row in rows:
            content = normalised(row.prompt)
            here = f"{name} prompt {row.id!r}"
            if content in on:
                raise UserError(
                    f"{here} ({row.prompt!r}) is also ON prompt {on[content]}; an OFF prompt is OFF "
                    "for every document: drop one of the two"
                )
            if content in seen:
                raise UserError(
                    f"{here} ({row.prompt!r}) has the content of {seen[content]}; OFF prompts are "
                    "distinct within and across sets: drop one of the two"
                )
            seen[content] = here
