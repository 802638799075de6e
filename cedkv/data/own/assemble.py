"""From documents and what they are asked to a whole project: the bank, what stays outside it, OFF prompts, splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cedkv.core.errors import UserError
from cedkv.data.own import sample
from cedkv.data.own.asked import Asked, split_on
from cedkv.data.own.off import Division, Stated, off_rows
from cedkv.data.own.project import SPLITS, Project, sizes_for
from cedkv.data.records import Document, OffPrompt, normalised
from cedkv.data.skills import SKILLS
from cedkv.data.stress import content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SEPARATOR: Final = "\n\n"
"""What stands between a document and a prompt made from one."""


_OURS: Final = (
    "The rows show what rows look like. They are written in the words of the model that ships with cedkv, so that they can be "
    "trained as they are: put your own in their place, or have them made with `cedkv init DIR --from FILE`."
)


def sample_project(model: str, seed: int) -> Project:
    """Our own sentences."""
    rows = sample.documents()
    return Project(
        model=model,
        documents=rows,
        on=sample.on_prompts(seed),
        off=sample.off_prompts(sample.SIZES, seed),
        separator="",
        continues=False,
        remarks=[_OURS],
        slots=sample.SLOTS,
        steps=sample.STEPS,
    )


def text_project(
    model: str,
    documents: Division,
    asked: Mapping[str, Sequence[Asked]],
    *,
    seed: int,
    remarks: Sequence[str],
    forms: Sequence[Callable[[str], str]],
) -> Project:
    """The user's text.

    Args:
        asked: what every document, in the bank or outside it, is asked, by its id.
        forms: the forms that it is asked in; OFF prompts from templates take one of them each, in equal parts.

    Raises:
        UserError: too little that the documents of the bank could be asked.
    """
    on = {document.id: split_on(asked[document.id], seed) for document in documents.bank}
    bank = [document for document in documents.bank if on[document.id]]
    if not bank:
        raise UserError(
            f"of {len(documents.bank)} documents none gave prompts for training and for evaluation: a document needs two "
            "sentences at least that can be asked about; give longer text, or other --prompts"
        )
    rows = [row for document in bank for row in on[document.id]]
    stated, taken = Stated(bank), {normalised(row.prompt) for row in rows}

    def form(prompt: str) -> str:
        return forms[int(content_key(seed, prompt)[:8], 16) % len(forms)](prompt)

    near = {
        split: [
            OffPrompt(f"near/{document.id}/{one.name}", one.prompt, f"near/{one.kind}")
            for document in documents.outside[split]
            for one in asked[document.id]
            if normalised(one.prompt) not in taken and not stated.may_answer(one.bare, one.answer)
        ]
        for split in SPLITS
    }
    off = off_rows(sizes_for(len(bank)), near, SKILLS, seed=seed, barred=stated.may_answer, form=form)
    return Project(
        model=model,
        documents=[_row(document) for document in bank],
        on=rows,
        off=off,
        separator=SEPARATOR,
        continues=True,
        remarks=[*remarks, *_counted(documents, bank, near)],
    )


def _row(document: Document) -> dict[str, Any]:
    return {"id": document.id, "text": document.text}


def _counted(
    documents: Division, bank: Sequence[Document], near: Mapping[str, Sequence[OffPrompt]]
) -> list[str]:
    """What became of the documents."""
    remarks = []
    if len(bank) < len(documents.bank):
        remarks.append(
            f"{len(documents.bank) - len(bank)} of {len(documents.bank)} documents gave too few prompts and are left out."
        )
    if any(documents.outside.values()):
        parts = (f"{len(documents.outside[s])} ({len(near[s])} prompts) for {s}" for s in SPLITS)
        remarks.append(
            "Documents that got no memory ask the nearest misses: their prompts are OFF prompts, the families `near/...`, and no "
            f"such document serves two splits: {', '.join(parts)}."
        )
    else:
        remarks.append(
            "No OFF prompt comes near the documents: `cedkv init --holdout 0.2` keeps some of them outside and takes theirs."
        )
    return remarks
