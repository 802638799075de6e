"""A whole corpus of the synthetic world: documents, ON prompts and disjoint OFF sets, from seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from cedkv.core.errors import UserError
from cedkv.data.records import Corpus, OffPrompt, OnPrompt, normalised
from cedkv.data.skills import SKILLS, Item
from cedkv.data.world import (
    EVAL_CORES,
    HEADS,
    TAILS,
    TRAIN_CORES,
    UNKNOWN,
    Fact,
    absent_pairs,
    compose_document,
    draw_facts,
    question,
)

if TYPE_CHECKING:
    from cedkv.config import Config


class _Distinct:
    """Hands out OFF prompts that no set has had before, by normalised content."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def draw(self, make: Callable[[], Item], count: int) -> list[Item]:
        """Up to `count` new prompts; fewer where the family has run dry."""
        found: list[Item] = []
        for _ in range(20 * count + 200):
            if len(found) == count:
                break
            item = make()
            content = normalised(item.prompt)
            if content not in self._seen:
                self._seen.add(content)
                found.append(item)
        return found


def _off_set(
    name: str,
    size: int,
    near_miss_share: float,
    rng: random.Random,
    near_miss: Callable[[], Item],
    pool: _Distinct,
) -> tuple[OffPrompt, ...]:
    """`size` prompts: near misses first, the rest spread over the skills; what a small family lacks others fill."""
    items = pool.draw(near_miss, math.ceil(near_miss_share * size))
    families = list(SKILLS.values())
    while len(items) < size and families:
        quota = -(-(size - len(items)) // len(families))
        for skill in list(families):
            found = pool.draw(lambda skill=skill: skill(rng), min(quota, size - len(items)))
            items += found
            if len(found) < quota:
                families.remove(skill)
    if len(items) < size:
        raise UserError(
            f"the generated world has {len(items)} distinct OFF prompts left for the {name} set of {size}: lower its size"
        )
    rng.shuffle(items)
    return tuple(OffPrompt(f"{name}-{i:05d}", item.prompt, item.family) for i, item in enumerate(items))


def generate(config: Config) -> Corpus:
    """The corpus that `config` describes: documents, ON and OFF prompts, every part from its own seeded generator.

    The stress set depends on its own seed and on the documents (it holds their near misses), not on the other sets.
    """
    data, sizes = config.data, config.phase3.eval
    assert data.source == "generated"
    rng = random.Random(f"documents {data.seed}")
    taken: set[tuple[str, str]] = set()
    documents, train, evaluation, everything = [], [], [], []
    for n in range(sizes.on_samples):
        facts = draw_facts(rng, data.facts_per_document, taken)
        taken |= {fact.pair for fact in facts}
        everything += facts
        name = f"doc-{n:04d}"
        documents.append(compose_document(rng, name, facts, data.free_sentences))
        asked: set[str] = set()
        train += _ask(rng, name, facts, "train", TRAIN_CORES, data.on_train_prompts_per_fact, asked)
        evaluation += _ask(rng, name, facts, "eval", EVAL_CORES, data.on_eval_prompts_per_fact, asked)
    pool = _Distinct()

    def off(name: str, size: int, seed: int) -> tuple[OffPrompt, ...]:
        own = random.Random(f"{name} {seed}")
        pairs = absent_pairs(own, everything, taken)

        def near_miss() -> Item:
            return Item(question(own, *next(pairs), TRAIN_CORES + EVAL_CORES), UNKNOWN, "near_miss")

        return _off_set(name, size, sizes.near_miss_share, own, near_miss, pool)

    stress = off("stress", sizes.off_fixed_stress.size, sizes.off_fixed_stress.seed)
    off_train = off("off", sizes.off_samples, data.seed)
    sealed = off("sealed", sizes.off_sealed.size, data.seed)
    return Corpus(tuple(documents), tuple(train), tuple(evaluation), off_train, stress, sealed)


def _ask(
    rng: random.Random,
    document: str,
    facts: list[Fact],
    split: Literal["train", "eval"],
    cores: tuple[str, ...],
    per_fact: int,
    asked: set[str],
) -> list[OnPrompt]:
    """`per_fact` different questions about every fact."""
    prompts = []
    for fact in facts:
        room = len(HEADS) * len(cores) * len(TAILS)
        if per_fact > room:
            raise UserError(
                f"{per_fact} {split} prompts per fact are asked for, but there are {room} phrasings: lower it"
            )
        while (
            len(
                [p for p in prompts if p.id.startswith(f"{document}-{split}-{fact.entity}-{fact.attribute}-")]
            )
            < per_fact
        ):
            text = question(rng, *fact.pair, cores)
            if normalised(text) not in asked:
                asked.add(normalised(text))
                name = f"{document}-{split}-{fact.entity}-{fact.attribute}-{len(prompts)}"
                prompts.append(OnPrompt(name, document, text, f" {fact.value}", split))
    return prompts
