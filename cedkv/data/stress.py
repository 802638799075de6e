"""Which OFF prompts train, which are the fixed stress set, and which stay sealed.

Drawn once when a run starts and never again. The draw depends on the seed and on the prompts' content only: not on
their order in a file, not on Python's hash, not on the machine.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cedkv.core.errors import UserError
from cedkv.data.records import OffPrompt, normalised

if TYPE_CHECKING:
    from collections.abc import Iterable


def content_key(seed: int, content: str) -> str:
    """64 hex digits that order ``content`` at random under ``seed``, the same on every machine."""
    return hashlib.sha256(f"{seed}\n{content}".encode()).hexdigest()


def distinct(prompts: Iterable[OffPrompt]) -> list[OffPrompt]:
    """One prompt of each `normalised` content, by content; of equal ones the smallest (prompt, family, id)."""
    chosen: dict[str, OffPrompt] = {}
    for prompt in sorted(prompts, key=lambda p: (p.prompt, p.family, p.id)):
        chosen.setdefault(normalised(prompt.prompt), prompt)
    return [chosen[content] for content in sorted(chosen)]


def draw(prompts: Iterable[OffPrompt], *, seed: int) -> list[OffPrompt]:
    """The distinct ``prompts`` in the random order that ``seed`` gives their contents."""
    return sorted(distinct(prompts), key=lambda p: content_key(seed, normalised(p.prompt)))


def split_off(
    prompts: Iterable[OffPrompt], *, train: int, stress: int, sealed: int, seed: int
) -> tuple[tuple[OffPrompt, ...], tuple[OffPrompt, ...], tuple[OffPrompt, ...]]:
    """Split ``prompts`` into disjoint (train, stress, sealed) sets of distinct prompts.

    The stress set is drawn first, so that its content does not move with the size of the others; then training;
    the sealed set takes what remains, up to its size, and may be empty. ``UserError`` where fewer than
    ``train + stress`` distinct prompts are given.
    """
    given = list(prompts)
    order = draw(given, seed=seed)
    if len(order) < train + stress:
        raise UserError(
            f"{len(order)} distinct OFF prompts of {len(given)} given, but {train + stress} are needed ({stress} for "
            f"phase3.eval.off_fixed_stress.size and {train} for phase3.eval.off_samples); add OFF prompts or lower one"
        )
    ends = (stress, stress + train, stress + train + sealed)
    return tuple(order[ends[0] : ends[1]]), tuple(order[: ends[0]]), tuple(order[ends[1] : ends[2]])


def take(prompts: Iterable[OffPrompt], size: int, *, name: str, key: str, seed: int) -> tuple[OffPrompt, ...]:
    """``size`` prompts drawn from a set that a file assigns itself. ``UserError`` where it holds fewer."""
    order = draw(prompts, seed=seed)
    if len(order) < size:
        raise UserError(
            f"{len(order)} distinct OFF prompts with split {name!r}, but {key} asks for {size}; "
            f"add prompts or lower {key}"
        )
    return tuple(order[:size])
