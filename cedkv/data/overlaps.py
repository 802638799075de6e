"""Which prompts of a corpus nearly repeat others, within a part and between parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cedkv.data.near import Near, near_duplicates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cedkv.data.records import Corpus

_EXAMPLES: Final = 3
_PAIRS: Final = (
    ("on_eval", "on_train"),
    ("stress", "off_train"),
    ("sealed", "off_train"),
    ("sealed", "stress"),
    ("off_train", "on"),
    ("stress", "on"),
    ("sealed", "on"),
    *((part, part) for part in ("documents", "on_train", "on_eval", "off_train", "stress", "sealed")),
)
"""A part, and the one that it may repeat; ``on`` is ON training and evaluation together."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text, the one that it nearly repeats, and their Jaccard index."""

    text: str
    other: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Overlap:
    """``prompts`` of the ``of`` in ``part`` have a near duplicate in ``other``; the closest ones as examples."""

    part: str
    other: str
    prompts: int
    of: int
    examples: tuple[Example, ...]


def overlaps(corpus: Corpus) -> list[Overlap]:
    """Near duplicates between the parts that should have none, and within each part."""
    parts = {"documents": [document.text for document in corpus.documents]}
    parts |= {
        name: [row.prompt for row in getattr(corpus, name)]
        for name in ("on_train", "on_eval", "off_train", "stress", "sealed")
    }
    texts = [text for rows in parts.values() for text in rows]
    part = np.repeat(list(parts), [len(rows) for rows in parts.values()])
    compared = _Compared(texts, part, near_duplicates(texts))
    return [overlap for name, other in _PAIRS if (overlap := compared.overlap(name, other)).of]


@dataclass(frozen=True, slots=True)
class _Compared:
    """All texts with the name of the part [n] that each is in, and which are alike."""

    texts: list[str]
    part: NDArray[np.str_]
    near: Near

    def overlap(self, name: str, other: str) -> Overlap:
        """What ``name`` repeats of ``other``."""
        group = self.near.group
        mine = self.part == name
        theirs = np.isin(self.part, ("on_train", "on_eval") if other == "on" else (other,))
        groups = int(group.max(initial=-1)) + 1
        often = np.bincount(group[theirs], minlength=groups)
        repeated = often > (1 if name == other else 0)  # a text does not repeat itself
        for here, there in ((self.near.left, self.near.right), (self.near.right, self.near.left)):
            repeated[here[often[there] > 0]] = True
        return Overlap(
            name,
            other,
            int(repeated[group[mine]].sum()),
            int(mine.sum()),
            tuple(self._examples(mine, theirs)),
        )

    def _examples(self, mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Iterator[Example]:
        """The closest pairs, one of every two groups."""
        near, first, last = (
            self.near,
            _first(self.near.group, mine),
            _first(self.near.group, theirs, last=True),
        )
        found = [(1.0, place, last[group]) for group, place in first.items() if group in last]
        for value, *pair in zip(
            near.similarity.tolist(), near.left.tolist(), near.right.tolist(), strict=True
        ):
            found += [(value, first[a], last[b]) for a, b in (pair, pair[::-1]) if a in first and b in last]
        closest = sorted((pair for pair in found if pair[1] != pair[2]), key=lambda pair: -pair[0])
        for value, place, other in closest[:_EXAMPLES]:
            yield Example(self.texts[place], self.texts[other], round(value, 3))


def _first(group: NDArray[np.intp], chosen: NDArray[np.bool_], *, last: bool = False) -> dict[int, int]:
    """The first place of every group that is chosen, or the last one."""
    places = np.flatnonzero(chosen)
    if not last:
        places = places[::-1]
    return dict(zip(group[places].tolist(), places.tolist(), strict=True))  # later ones win
