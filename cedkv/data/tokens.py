"""Documents and prompts as token ids of any Hugging Face fast tokenizer, with the checks that need one.

Ids keep the special tokens that the tokenizer puts in front (BOS) and drop those it puts at the end (EOS): a prompt is
continued, so nothing may close it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cedkv.core.errors import UserError
from cedkv.data.lines import shown
from cedkv.data.roles import classify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cedkv.data.records import Document

_BLANK = "▁Ġ \t\n"
"""What the vocabulary entry of a token is made of when it stands for white space alone."""

_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""Role and control markers by their looks: some tokenizers add them without calling them special."""


class FastTokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    @property
    def is_fast(self) -> bool:
        """Whether it can give character offsets."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of BOS, EOS, PAD, UNK and their like."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens added to the vocabulary, by id."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode ``text``."""

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The vocabulary entries of ``ids``."""


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document's tokens: ids, the characters each covers, and which of them are special.

    An offset is empty for special tokens and for white space that has no character of its own.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]


def encode_prompt(tokenizer: FastTokenizer, prompt: str, *, name: str) -> tuple[int, ...]:
    """Token ids of ``prompt``, BOS included where the tokenizer adds one. ``name`` is for the error."""
    ids, _, _ = _encode(tokenizer, prompt)
    if not ids:
        raise UserError(f"{name}: {shown(prompt)} has no tokens; write a prompt of at least one word")
    return ids


def encode_on(
    tokenizer: FastTokenizer, prompt: str, answer: str, *, name: str = "ON prompt"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of ``prompt`` (BOS included where the tokenizer adds one) and of ``answer`` after it.

    The answer's ids are those it has in the full text. ``UserError`` unless the tokens of the prompt are the
    beginning of the tokens of prompt + answer, and at least one token is left for the answer.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, name=name)
    full_ids, _, _ = _encode(tokenizer, prompt + answer)
    if full_ids[: len(prompt_ids)] == prompt_ids and len(full_ids) > len(prompt_ids):
        return prompt_ids, full_ids[len(prompt_ids) :]
    if full_ids == prompt_ids:
        raise UserError(f"{name}: answer {shown(answer)} adds no token; write an answer of at least one word")
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt_ids, full_ids, strict=False)) if a != b),
        min(len(prompt_ids), len(full_ids)),
    )
    raise UserError(
        f"{name}: prompt {shown(prompt)} and answer {shown(answer)} meet inside a token: the prompt ends in the "
        f"tokens {_excerpt(tokenizer, prompt_ids, same)}, prompt + answer reads "
        f"{_excerpt(tokenizer, full_ids, same)}; a prompt must end at a token boundary of the full text: "
        f"{_boundary_remedy(prompt, answer)}"
    )


def encode_document(tokenizer: FastTokenizer, document: Document) -> EncodedDocument:
    """Tokens of ``document`` with character offsets, BOS included where the tokenizer adds one."""
    ids, offsets, template = _encode(tokenizer, document.text)
    if all(template):
        raise UserError(f"document {document.id!r} has no tokens; write a text of at least one word")
    entries = [str(entry) for entry in tokenizer.convert_ids_to_tokens(list(ids))]
    markers = marker_ids(tokenizer)
    # A made-up leading space (SentencePiece) claims the first character's offset, which is not its own.
    own = tuple(
        (start, start) if not entry.strip(_BLANK) and document.text[start:stop].strip() else (start, stop)
        for entry, (start, stop) in zip(entries, offsets, strict=True)
    )
    special = tuple(given or i in markers for i, given in zip(ids, template, strict=True))
    return EncodedDocument(ids, own, special)


def token_roles(document: Document, encoded: EncodedDocument) -> tuple[str | None, ...]:
    """The atom type of every token of ``encoded``; ``None`` for special tokens and role markers."""
    return classify(document.text, document.spans, encoded.offsets, encoded.special)


def check_fits(name: str, parts: Mapping[str, int], context: int) -> None:
    """``UserError`` where the parts of one input, in tokens, are longer together than the model's context."""
    total = sum(parts.values())
    if total > context:
        sizes = " + ".join(f"{length} ({part})" for part, length in parts.items())
        raise UserError(
            f"{name}: {sizes} = {total} tokens, more than the model's context of {context}; shorten it, drop it, "
            "or use a model with a longer context"
        )


def _encode(
    tokenizer: FastTokenizer, text: str
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[bool, ...]]:
    """Ids, offsets, and which tokens the tokenizer's template put in; those at the end are left out."""
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets; use a fast tokenizer (a model folder "
            "with tokenizer.json)"
        )
    out = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=False, verbose=False
    )
    mask = [bool(flag) for flag in out["special_tokens_mask"]]
    stop = len(mask)
    while stop and mask[stop - 1]:
        stop -= 1
    # With no text between them, leading and trailing special tokens look alike: keep none.
    ids = tuple(out["input_ids"][:stop])
    offsets = tuple((int(start), int(end)) for start, end in out["offset_mapping"][:stop])
    return ids, offsets, tuple(mask[:stop])


def marker_ids(tokenizer: FastTokenizer) -> frozenset[int]:
    """Special tokens, and those that mark roles."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {
        index for index, token in added if token.special or _MARKER.fullmatch(str(token.content))
    }


def _excerpt(tokenizer: FastTokenizer, ids: Sequence[int], at: int) -> str:
    """The tokens around position ``at``, where two encodings part."""
    part = tokenizer.convert_ids_to_tokens(list(ids[max(0, at - 1) : at + 3]))
    return f"[{', '.join(map(repr, part))}]"


def _boundary_remedy(prompt: str, answer: str) -> str:
    if prompt[-1:].isspace():
        return "move the white space at the prompt's end to the start of the answer"
    if not answer[:1].isspace():
        return "start the answer with a space, or end the prompt after a whole word"
    return "end the prompt after a whole word"
