"""What documents are asked, before it is split: rows of questions that belong together stay on one side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cedkv.data.jsonl import EVAL_SHARE
from cedkv.data.records import OnPrompt
from cedkv.data.stress import content_key

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt about the document of that id and its answer, with the space it starts with.

    ``kind`` is how it was made, ``name`` its own within the document, ``bare`` the prompt without a form around it. What is
    of one ``group`` asks about the same words of the document.
    """

    document: str
    kind: str
    name: str
    group: str
    bare: str
    prompt: str
    answer: str


def split_on(asked: Sequence[Asked], seed: int) -> list[OnPrompt]:
    """What one document is asked as ON prompts: whole groups for evaluation, the others for training.

    A quarter of the groups, rounded up and drawn by ``seed``, is evaluated. Nothing where there is one group only.
    """
    groups = sorted(
        {one.group for one in asked}, key=lambda group: content_key(seed, f"{asked[0].document}\n{group}")
    )
    if len(groups) < 2:
        return []
    evaluated = set(groups[: math.ceil(EVAL_SHARE * len(groups))])
    return [
        OnPrompt(
            f"{one.document}/{one.name}",
            one.document,
            one.prompt,
            one.answer,
            "eval" if one.group in evaluated else "train",
        )
        for one in asked
    ]
