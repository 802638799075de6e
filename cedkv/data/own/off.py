"""OFF prompts of a project: what documents outside the bank are asked, and sentences from templates.

Nothing is OFF that a document of the bank may answer. That is judged by words: one document that holds every telling
word of the prompt, and those of its answer, may.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cedkv.core.errors import UserError
from cedkv.data.generate import Distinct
from cedkv.data.jsonl import OffFile
from cedkv.data.near import near_duplicates, words
from cedkv.data.own.project import SPLITS, Sizes
from cedkv.data.own.sources import Piece
from cedkv.data.records import Document, OffPrompt, normalised
from cedkv.data.roles import is_function_word
from cedkv.data.skills import Item
from cedkv.data.stress import content_key, draw

NEAR_SHARE: Final = 0.5
"""Share of a split that questions about documents outside the bank may have; the rest comes from templates."""
_TURN: Final = ("train", "stress", "sealed", "train")  # splits that documents are dealt to, again and again
_SOURCES: Final = 8  # with fewer sources, their pieces are dealt one by one

Maker = Callable[[random.Random], Item]


class Stated:
    """What the documents of a bank state, by their words."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._holders: defaultdict[str, set[int]] = defaultdict(set)
        self._all: set[int] = set()
        for number, document in enumerate(documents):
            self._all.add(number)
            for word in set(words(document.text)):
                self._holders[word].add(number)

    def may_answer(self, prompt: str, answer: str) -> bool:
        """Whether one document holds all words of both but the function words."""
        left = self._all
        for word in words(f"{prompt} {answer}"):
            if not is_function_word(word):
                left = left & self._holders.get(word, set())
                if not left:
                    return False
        return bool(left)


@dataclass(frozen=True, slots=True)
class Division:
    """The documents of the bank, and those outside it by the OFF split that their prompts go to."""

    bank: list[Document]
    outside: dict[str, list[Document]]

    @property
    def all(self) -> list[Document]:
        """Both."""
        return [*self.bank, *(document for split in SPLITS for document in self.outside[split])]


def divide(pieces: Sequence[Piece], share: float, seed: int) -> Division:
    """Keep a ``share`` of the documents outside the bank, drawn by ``seed``; with 0, none.

    Sources stay together where there are enough of them, and documents that nearly repeat each other always: what one
    split asks is asked in no other, and not in the bank.

    Raises:
        UserError: too few documents for one in every split and one in the bank.
    """
    outside: dict[str, list[Document]] = {split: [] for split in SPLITS}
    if share:
        groups = _groups(pieces)
        order = sorted(groups, key=lambda group: content_key(seed, min(d.id for d in groups[group])))
        count = max(len(SPLITS), round(share * len(order)))
        if count >= len(order):
            raise UserError(
                f"--holdout {share:g} of {len(order)} documents that differ: {count} would stay outside, one at least for each of "
                f"{', '.join(SPLITS)}, and none would be left for the bank; give more text, or leave --holdout out"
            )
        for turn, group in enumerate(order[:count]):
            outside[_TURN[turn % len(_TURN)]] += groups[group]
    ids = {document.id for documents in outside.values() for document in documents}
    return Division([piece.document for piece in pieces if piece.document.id not in ids], outside)


def _groups(pieces: Sequence[Piece]) -> dict[int, list[Document]]:
    """The documents that stay together, by the number of their first piece."""
    by_source = len({piece.source for piece in pieces}) >= _SOURCES
    root = list(range(len(pieces)))

    def find(n: int) -> int:
        while root[n] != n:
            root[n] = n = root[root[n]]
        return n

    def join(a: int, b: int) -> None:
        low, high = sorted((find(a), find(b)))
        root[high] = low

    near = near_duplicates(piece.document.text for piece in pieces)
    member: dict[int, int] = {}
    first: dict[str, int] = {}
    for n, (piece, group) in enumerate(zip(pieces, near.group.tolist(), strict=True)):
        join(member.setdefault(group, n), n)
        join(first.setdefault(piece.source, n) if by_source else n, n)
    for a, b in zip(near.left.tolist(), near.right.tolist(), strict=True):
        join(member[a], member[b])
    groups: dict[int, list[Document]] = {}
    for n, piece in enumerate(pieces):
        groups.setdefault(find(n), []).append(piece.document)
    return groups


def off_rows(
    sizes: Sizes,
    near: Mapping[str, Iterable[OffPrompt]],
    families: Mapping[str, Maker],
    *,
    seed: int,
    barred: Callable[[str, str], bool] = lambda _prompt, _answer: False,
    form: Callable[[str], str] = str,
) -> OffFile:
    """OFF prompts of ``sizes``: of ``near`` up to `NEAR_SHARE` by split, the others in equal parts from ``families``.

    Args:
        barred: whether a prompt with that answer is not OFF.
        form: puts a prompt into the form of the ON prompts: no memory should go by the form.

    Raises:
        UserError: the families have run dry.
    """
    taken: set[str] = set()
    chosen = {
        split: _some(near.get(split, ()), math.floor(NEAR_SHARE * sizes.of(split)), taken, seed)
        for split in SPLITS
    }
    wanted = {split: sizes.of(split) - len(chosen[split]) for split in SPLITS}
    count = sum(wanted.values())
    made = _draw(
        families,
        count,
        lambda item: normalised(form(item.prompt)) in taken or barred(item.prompt, item.answer),
        seed,
    )
    if len(made) < count:
        raise UserError(
            f"{count} OFF prompts are wanted, but templates make {len(made)} that no document may answer; give fewer "
            "documents"
        )
    made.sort(key=lambda item: content_key(seed, normalised(item.prompt)))
    for split in SPLITS:
        part, made = made[: wanted[split]], made[wanted[split] :]
        chosen[split] += [
            OffPrompt(f"{split}-{n}", form(item.prompt), item.family) for n, item in enumerate(part)
        ]
    return OffFile(**chosen)


def _some(prompts: Iterable[OffPrompt], count: int, taken: set[str], seed: int) -> list[OffPrompt]:
    """Up to ``count`` of the prompts, drawn by ``seed``; their contents join those that are ``taken``."""
    some: list[OffPrompt] = []
    for prompt in draw(prompts, seed=seed):
        content = normalised(prompt.prompt)
        if len(some) < count and content not in taken:
            taken.add(content)
            some.append(prompt)
    return some


def _draw(families: Mapping[str, Maker], count: int, barred: Callable[[Item], bool], seed: int) -> list[Item]:
    """Distinct prompts in equal parts; what a small family lacks others fill."""
    rng, pool = random.Random(f"off {seed}"), Distinct(barred)
    left, found = dict(families), list[Item]()
    while left and len(found) < count:
        quota = -(-(count - len(found)) // len(left))
        for name, make in list(left.items()):
            wanted = min(quota, count - len(found))
            new = pool.draw(make, rng, wanted)
            found += new
            if len(new) < wanted:
                del left[name]
    return found
