"""A whole corpus of the synthetic world: documents, ON prompts and disjoint OFF sets, from seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from cedkv.core.errors import UserError
from cedkv.data.lexicon import ATTRIBUTES, NAMES
from cedkv.data.records import Corpus, OffPrompt, OnPrompt, normalised
from cedkv.data.skills import SKILLS, Item
from cedkv.data.world import (
    ALL_CORES,
    EVAL_CORES,
    HEADS,
    ON_TRAIN_CORES,
    TAILS,
    UNKNOWN,
    Fact,
    absent_pairs,
    compose_document,
    draw_facts,
    question,
)

if TYPE_CHECKING:
    from cedkv.config import Config


_GIVE_UP_AFTER = 1000


class Distinct:
    """Hands out OFF prompts that no set has had before, by normalised content, and none that is `barred`."""

    def __init__(self, barred: Callable[[Item], bool] = lambda _: False) -> None:
        self._seen: set[str] = set()
        self._barred = barred

    def draw(
        self, make: Callable[[random.Random], Item], rng: random.Random, count: int, leave: int = 0
    ) -> list[Item]:
        """Up to `count` new prompts of `make`; fewer where the family has run dry.

        `leave` more are wanted by a later set: where there are not enough for both, at most half of them are taken.
        """
        found: list[Item] = []
        repeats = 0  # in a row
        while len(found) < count + leave and repeats < _GIVE_UP_AFTER:
            item = make(rng)
            content = normalised(item.prompt)
            repeats += 1
            if content not in self._seen and not self._barred(item):
                self._seen.add(content)
                found.append(item)
                repeats = 0
        taken = min(count, max(len(found) - leave, -(-len(found) // 2)))
        self._seen.difference_update(normalised(item.prompt) for item in found[taken:])
        return found[:taken]


@dataclass(frozen=True, slots=True)
class _World:
    """What the documents of the bank state, and what they leave open."""

    facts: list[Fact]
    stated: set[tuple[str, str]]

    @property
    def most_near_misses(self) -> int:
        """Every open pair in every phrasing."""
        pairs = len(NAMES) * len(ATTRIBUTES) - len(self.stated)
        return pairs * len(HEADS) * len(ALL_CORES) * len(TAILS)

    def near_misses(self, rng: random.Random) -> Callable[[random.Random], Item]:
        """Questions that no document answers, about what some document nearly states."""
        pairs = absent_pairs(rng, self.facts, self.stated)

        def near_miss(rng: random.Random) -> Item:
            return Item(question(rng, *next(pairs), ALL_CORES), UNKNOWN, "near_miss")

        return near_miss


def _off_set(
    name: str, size: int, seed: int, *, leave: int = 0, near_miss_share: float, world: _World, pool: Distinct
) -> tuple[OffPrompt, ...]:
    """`size` prompts: near misses first, the rest spread over the skills; what a small family lacks others fill.

    A later set wants `leave` prompts of the same mix.
    """
    rng = random.Random(f"{name} {seed}")
    wanted = math.ceil(near_miss_share * size)
    # Where near misses run out nothing may take their place: their share is part of the stress definition.
    enough = wanted <= world.most_near_misses
    items = pool.draw(world.near_misses(rng), rng, wanted) if enough else []
    families = list(SKILLS.values()) if enough and len(items) == wanted else []
    while len(items) < size and families:
        quota = -(-(size - len(items)) // len(families))
        for skill in list(families):
            found = pool.draw(skill, rng, min(quota, size - len(items)), _each(leave, near_miss_share))
            items += found
            if len(found) < quota:
                families.remove(skill)
    if len(items) < size:
        raise UserError(
            f"{_SIZE_KEYS[name]} is {size}, of which {wanted} are near misses, but the generated world does not have "
            "so many distinct OFF prompts: lower it"
        )
    rng.shuffle(items)
    return tuple(OffPrompt(f"{name}-{i:05d}", item.prompt, item.family) for i, item in enumerate(items))


def _each(size: int, near_miss_share: float) -> int:
    """How many prompts of every skill a set of that size wants."""
    return math.ceil(size * (1 - near_miss_share) / len(SKILLS))


_SIZE_KEYS = {
    "stress": "phase3.eval.off_fixed_stress.size",
    "off": "phase3.eval.off_samples",
    "sealed": "phase3.eval.off_sealed.size",
}


def generate(config: Config) -> Corpus:
    """The corpus that `config` describes: documents, ON and OFF prompts, every part from its own seeded generator.

    The stress set depends on its own seed and on the documents (it holds their near misses), not on the other sets.

    Raises:
        UserError: more facts, phrasings or OFF prompts than the world has.
    """
    data, sizes = config.data, config.phase3.eval
    assert data.source == "generated"
    _check_room(sizes.on_samples, data.facts_per_document)
    writing, asking = random.Random(f"documents {data.seed}"), random.Random(f"questions {data.seed}")
    world = _World([], set())
    documents, train, evaluation = [], [], []
    for n in range(sizes.on_samples):
        facts = draw_facts(writing, data.facts_per_document, world.stated)
        world.facts.extend(facts)
        world.stated.update(fact.pair for fact in facts)
        name = f"doc-{n:04d}"
        documents.append(compose_document(writing, name, facts, data.free_sentences))
        train += _ask(asking, name, facts, "train", per_fact=data.on_train_prompts_per_fact)
        evaluation += _ask(asking, name, facts, "eval", per_fact=data.on_eval_prompts_per_fact)
    stressed = sizes.off_fixed_stress
    off = partial(_off_set, near_miss_share=sizes.near_miss_share, world=world, pool=Distinct())
    stress = off("stress", stressed.size, stressed.seed)
    # Before the training set: a large one would take every prompt of a small family and leave an easier exam.
    sealed = off("sealed", sizes.off_sealed.size, data.seed, leave=sizes.off_samples)
    off_train = off("off", sizes.off_samples, data.seed)
    return Corpus(tuple(documents), tuple(train), tuple(evaluation), off_train, stress, sealed)


def _check_room(documents: int, facts: int) -> None:
    """No pair is stated twice, and as many stay open: near misses are made of those."""
    room = len(NAMES) * len(ATTRIBUTES) // 2
    if documents * facts > room:
        raise UserError(
            f"phase3.eval.on_samples = {documents} documents of data.facts_per_document = {facts} facts need "
            f"{documents * facts} different facts, but the generated world has {room}: lower one of the two"
        )


_CORES = {"train": ON_TRAIN_CORES, "eval": EVAL_CORES}


def _ask(
    rng: random.Random, document: str, facts: list[Fact], split: Literal["train", "eval"], *, per_fact: int
) -> list[OnPrompt]:
    """`per_fact` different questions about every fact, in the phrasings of `split`."""
    cores = _CORES[split]
    room = len(HEADS) * len(cores) * len(TAILS)
    if per_fact > room:
        raise UserError(
            f"data.on_{split}_prompts_per_fact is {per_fact}, but there are {room} phrasings of a question: lower it"
        )
    prompts: list[OnPrompt] = []
    for fact in facts:
        asked: dict[str, str] = {}
        while len(asked) < per_fact:
            text = question(rng, *fact.pair, cores)
            asked.setdefault(normalised(text), text)
        for text in asked.values():
            name = f"{document}-{split}-{fact.entity}-{fact.attribute}-{len(prompts)}"
            prompts.append(OnPrompt(name, document, text, f" {fact.value}", split))
    return prompts
