"""The corpus of a run, from its configuration: generated or read from files, and always checked to be disjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cedkv.config.schema import JsonlData
from cedkv.core.errors import UserError
from cedkv.data.generate import generate
from cedkv.data.jsonl import OffFile, read_documents, read_off, read_on
from cedkv.data.lines import MAX_REPORTED
from cedkv.data.records import Corpus, Document, OffPrompt, OnPrompt, check_disjoint
from cedkv.data.stress import draw, split_off, take

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cedkv.config.phase3 import Eval
    from cedkv.config.schema import Config


def build_corpus(config: Config) -> Corpus:
    """The documents and prompts that ``config`` asks for. ``UserError`` where they cannot be had."""
    corpus = _from_files(config, config.data) if isinstance(config.data, JsonlData) else generate(config)
    check_disjoint(corpus)
    return corpus


def _from_files(config: Config, data: JsonlData) -> Corpus:
    """The first ``eval.on_samples`` documents with their ON prompts, and OFF sets drawn from the OFF file."""
    evaluation = config.phase3.eval
    path = config.path(data.documents)
    documents = read_documents(path)
    if len(documents) < evaluation.on_samples:
        raise UserError(
            f"{path}: holds {len(documents)} documents, but phase3.eval.on_samples asks for "
            f"{evaluation.on_samples}; add documents or lower phase3.eval.on_samples"
        )
    on = read_on(config.path(data.on), {document.id for document in documents}, seed=data.seed)
    documents = documents[: evaluation.on_samples]
    chosen = {document.id for document in documents}
    train = tuple(row for row in on if row.split == "train" and row.document in chosen)
    held_out = tuple(row for row in on if row.split == "eval" and row.document in chosen)
    _check_covered(str(config.path(data.on)), documents, {"train": train, "eval": held_out})
    off = _draw_off(config.path(data.off), evaluation)
    return Corpus(documents, train, held_out, *off)


def _check_covered(path: str, documents: Sequence[Document], on: dict[str, tuple[OnPrompt, ...]]) -> None:
    """Every document needs a prompt to train on and one to be judged by."""
    missing = []
    for split, rows in on.items():
        have = {row.document for row in rows}
        missing += [f"{document.id!r} ({split})" for document in documents if document.id not in have]
    if missing:
        rest = f" and {len(missing) - MAX_REPORTED} more" if len(missing) > MAX_REPORTED else ""
        raise UserError(
            f"{path}: no ON prompt for document {', '.join(missing[:MAX_REPORTED])}{rest}; every document needs at "
            "least one of split 'train' and one of split 'eval': add prompts or drop the document"
        )


def _draw_off(path: Path, sizes: Eval) -> tuple[tuple[OffPrompt, ...], ...]:
    off = read_off(path)
    try:
        return _sample_off(off, sizes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sample_off(off: OffFile, sizes: Eval) -> tuple[tuple[OffPrompt, ...], ...]:
    """(train, stress, sealed), from one pool or from the pools that the file assigns."""
    stress, seed = sizes.off_fixed_stress.size, sizes.off_fixed_stress.seed
    sealed = sizes.off_sealed.size
    if off.unsplit:
        return split_off(off.unsplit, train=sizes.off_samples, stress=stress, sealed=sealed, seed=seed)
    return (
        take(off.train, sizes.off_samples, name="train", key="phase3.eval.off_samples", seed=seed),
        take(off.stress, stress, name="stress", key="phase3.eval.off_fixed_stress.size", seed=seed),
        tuple(draw(off.sealed, seed=seed)[:sealed]),
    )
