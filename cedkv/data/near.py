"""Near duplicates: texts that share most of their word pairs, found exactly and not by sampling.

The similarity of two texts is the Jaccard index of their sets of neighbouring words. Two sets of at least `t · n` common
pairs share two of their rarest ones, whatever those are (Wang, Li, Feng 2012, "Can we beat the prefix filtering?"), so
only texts that do are compared.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.sparse import csr_matrix

from cedkv.data.records import normalised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

THRESHOLD: Final = 0.8
"""Jaccard index from which two texts count as near duplicates: one word of twenty changed, or punctuation alone."""

_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[-+*/%=<>^~|&$€£#@]")
"""A word, a character of scripts without spaces, or a sign that changes what is asked (`3 + 4` and `3 - 4`)."""

_SHARED = 2
_ROWS = 4096  # texts whose candidates are looked for at once
_PAIRS = 1 << 18  # candidates that are compared at once
_ROUNDING = 1e-9

Shingles = frozenset[tuple[str, str]]


def words(text: str) -> list[str]:
    """The words of ``text`` as they are compared, without punctuation."""
    return _UNIT.findall(normalised(text))


def occurs(part: str, text: str) -> bool:
    """Whether the words of ``part`` stand in ``text``, in their order; never where it has none."""
    return f" {' '.join(words(part))} " in f" {' '.join(words(text))} "


def shingles(text: str) -> Shingles:
    """The pairs of neighbouring words, the text's ends counting as words."""
    return frozenset(pairwise(["", *words(text), ""]))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Common shingles over all of both."""
    return len(left & right) / len(left | right)


@dataclass(frozen=True, slots=True)
class Near:
    """Which of some texts are alike.

    ``group``: [n] texts of one number have the same shingles. ``left``, ``right``, ``similarity``: [p] the pairs of
    different groups that are alike, ``left < right``, each once.
    """

    group: NDArray[np.intp]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    similarity: NDArray[np.float64]


def near_duplicates(texts: Iterable[str]) -> Near:
    """All pairs of ``texts`` whose Jaccard index is `THRESHOLD` or more."""
    numbers: dict[Shingles, int] = {}
    group = [numbers.setdefault(shingles(text), len(numbers)) for text in texts]
    found = _pairs(list(numbers))
    return Near(np.array(group, np.intp), *found)


def _pairs(sets: Sequence[Shingles]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """The pairs of ``sets`` that are alike, all of which are different."""
    rows = _rare_first(sets)
    sizes = np.array([len(row) for row in rows], np.intp)
    prefixes = [row[: _prefix(len(row))] for row in rows]
    width = 1 + max((row[-1] for row in rows if row), default=0)
    whole, starts = _matrix(rows, width), _matrix(prefixes, width)
    starts_by_shingle = starts.T.tocsr()
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]] = []
    for first in range(0, len(rows), _ROWS):
        shared = (starts[first : first + _ROWS] @ starts_by_shingle).tocoo()
        left, right = shared.row.astype(np.intp) + first, shared.col.astype(np.intp)
        small, large = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
        kept = (left < right) & (shared.data >= _SHARED) & (small >= THRESHOLD * large - _ROUNDING)
        left, right = left[kept], right[kept]
        for begin in range(0, len(left), _PAIRS):
            a, b = left[begin : begin + _PAIRS], right[begin : begin + _PAIRS]
            common = np.asarray(whole[a].multiply(whole[b]).sum(1)).ravel()
            index = common / (sizes[a] + sizes[b] - common)
            alike = index >= THRESHOLD - _ROUNDING
            found.append((a[alike], b[alike], index[alike]))
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0)
    return tuple(map(np.concatenate, zip(*found, strict=True)))  # type: ignore[return-value]


def _rare_first(sets: Sequence[Shingles]) -> list[list[int]]:
    """Every set as sorted numbers, the rarest shingle of all sets having the smallest."""
    often = Counter(shingle for one in sets for shingle in one)
    number = {shingle: n for n, (shingle, _) in enumerate(reversed(often.most_common()))}
    return [sorted(number[shingle] for shingle in one) for one in sets]


def _prefix(size: int) -> int:
    """How many of a set's rarest shingles hold `_SHARED` of those of every set that is alike."""
    common = math.ceil(THRESHOLD * size - _ROUNDING)
    return size - common + _SHARED


def _matrix(rows: Sequence[Sequence[int]], width: int) -> csr_matrix:
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((number for row in rows for number in row), np.intp, count=int(ends[-1]))
    return csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(rows), width))
