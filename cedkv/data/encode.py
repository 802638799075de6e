"""A corpus as token ids: what the teacher reads, what a bare prompt is, and how the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cedkv.core.errors import UserError
from cedkv.data.records import Corpus, Document, OffPrompt, OnPrompt
from cedkv.data.tokens import (
    FastTokenizer,
    check_fits,
    encode_document,
    encode_on,
    encode_prompt,
    token_roles,
)

if TYPE_CHECKING:
    from cedkv.config import Config


@dataclass(frozen=True, slots=True)
class EncodedContext:
    """A document as the teacher reads it, BOS and separator included, with the atom type of every token."""

    id: str
    ids: tuple[int, ...]
    types: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class EncodedOn:
    """An ON prompt: index of its document, ids of the bare prompt (BOS first where there is one) and of the answer."""

    source: OnPrompt
    document: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedOff:
    """An OFF prompt and its ids."""

    source: OffPrompt
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """Everything a run feeds the model.

    `skipped` leading tokens of a bare prompt are left out behind a document (its BOS, unless `data.repeat_bos`).
    """

    contexts: tuple[EncodedContext, ...]
    on_train: tuple[EncodedOn, ...]
    on_eval: tuple[EncodedOn, ...]
    off_train: tuple[EncodedOff, ...]
    stress: tuple[EncodedOff, ...]
    skipped: int


def encode_corpus(
    config: Config, corpus: Corpus, tokenizer: FastTokenizer, context_length: int
) -> EncodedCorpus:
    """Encode `corpus` and check that everything fits the model's context.

    Raises:
        UserError: an answer that does not begin at a token boundary, a prompt longer than the context.
    """
    separator = config.data.document_separator
    contexts = tuple(encode_context(tokenizer, d, separator) for d in corpus.documents)
    skipped = 0 if config.data.repeat_bos else leading_special(tokenizer)
    index = {document.id: n for n, document in enumerate(corpus.documents)}
    on_train, on_eval = (
        tuple(_on(tokenizer, row, index[row.document]) for row in rows)
        for rows in (corpus.on_train, corpus.on_eval)
    )
    for row in (*on_train, *on_eval):
        parts = {
            "document": len(contexts[row.document].ids),
            "prompt": len(row.prompt) - skipped,
            "answer": len(row.answer),
        }
        check_fits(f"ON prompt {row.source.id!r}", parts, context_length)
    off_train, stress = (
        encode_off(tokenizer, rows, context_length) for rows in (corpus.off_train, corpus.stress)
    )
    return EncodedCorpus(contexts, on_train, on_eval, off_train, stress, skipped)


def encode_context(tokenizer: FastTokenizer, document: Document, separator: str) -> EncodedContext:
    """A document as the teacher reads it, with the ``separator`` behind it."""
    whole = replace(document, text=document.text + separator)
    encoded = encode_document(tokenizer, whole)
    return EncodedContext(document.id, encoded.ids, token_roles(whole, encoded))


def leading_special(tokenizer: FastTokenizer) -> int:
    """How many special tokens this tokenizer puts before a text."""
    special = set(tokenizer.all_special_ids)
    ids = encode_prompt(tokenizer, "a", name="probe")
    return next(n for n, token in enumerate(ids) if token not in special)


def _on(tokenizer: FastTokenizer, row: OnPrompt, document: int) -> EncodedOn:
    prompt, answer = encode_on(tokenizer, row.prompt, row.answer, name=f"ON prompt {row.id!r}")
    return EncodedOn(row, document, prompt, answer)


def encode_off(
    tokenizer: FastTokenizer, rows: Sequence[OffPrompt], context_length: int
) -> tuple[EncodedOff, ...]:
    """OFF prompts as ids. `UserError` for one that is longer than the context, or for none at all."""
    encoded = []
    for row in rows:
        name = f"OFF prompt {row.id!r}"
        ids = encode_prompt(tokenizer, row.prompt, name=name)
        check_fits(name, {"prompt": len(ids)}, context_length)
        encoded.append(EncodedOff(row, ids))
    if not encoded:
        raise UserError("no OFF prompts: a memory cannot be shown to be harmless without any; add some")
    return tuple(encoded)
