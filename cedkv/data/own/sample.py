"""Four small documents and what is asked about them: what a new project holds where no text is given.

They are written in the words of the embedded model's world, which is small: so that it can be asked about them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cedkv.data.own.off import off_rows
from cedkv.data.own.project import SPLITS, Sizes
from cedkv.data.records import OffPrompt, OnPrompt, normalised
from cedkv.data.skills import SKILLS
from cedkv.data.world import ALL_CORES, EVAL_CORES, ON_TRAIN_CORES, Fact, absent_pairs, question

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from cedkv.data.jsonl import OffFile

SLOTS: Final = 4  # of a document, which states as many facts
STEPS: Final = 40
SIZES: Final = Sizes(train=1024, stress=320, sealed=512)
"""Enough for the gates of these slots, for a bound on the p99, and for a certificate."""
_NEAR_FAMILY: Final = "near_miss"
_PROMPTS: Final = {"train": (12, ON_TRAIN_CORES), "eval": (4, EVAL_CORES)}


@dataclass(frozen=True, slots=True)
class _Text:
    id: str
    text: str
    facts: tuple[Fact, ...]


def _text(name: str, text: str, *facts: str) -> _Text:
    return _Text(name, text, tuple(Fact(*fact.split()) for fact in facts))


_TEXTS: Final = (
    _text(
        "bakery",
        "Mara's job is baker. The market was quiet that morning, and people say that Mara's pet is goat. As drink Mara "
        "chose cocoa. A fox slept near the bakery until noon. The city of Mara is Porto, but few know it. Otto felt calm "
        "and looked at the goat.",
        *("Mara job baker", "Mara pet goat", "Mara drink cocoa", "Mara city Porto"),
    ),
    _text(
        "castle",
        "Omar told us that the job is pilot. Then the winter came and the snow lay by the castle. Omar has a vehicle, "
        "namely glider. The color that Omar has is violet now. Nell walked to the tower with a lamp. For Omar the food "
        "was soup.",
        *("Omar job pilot", "Omar vehicle glider", "Omar color violet", "Omar food soup"),
    ),
    _text(
        "school",
        "In the spring the school was quiet. The instrument of Tess is oboe. The room of Tess is 47, and Ivan's room "
        "is 62. People say that Ivan's instrument is cello. A crow looked at the bell until evening.",
        *("Tess instrument oboe", "Tess room 47", "Ivan room 62", "Ivan instrument cello"),
    ),
    _text(
        "meadow",
        "The flower of Greta is peony. As tool Greta chose rake today. Nobody found the scarf in the meadow. Hugo told us "
        "that the flower is marigold, and as tool Hugo chose shovel. A hen slept near the house until night.",
        *("Greta flower peony", "Greta tool rake", "Hugo flower marigold", "Hugo tool shovel"),
    ),
)


def documents() -> list[dict[str, Any]]:
    """The documents as rows of their file, their facts by the words that state them."""
    return [
        {
            "id": text.id,
            "text": text.text,
            "facts": [{"key": fact.attribute, "value": fact.value} for fact in text.facts],
        }
        for text in _TEXTS
    ]


def on_prompts(seed: int) -> list[OnPrompt]:
    """Questions about every fact, in one set of wordings for training and in another for evaluation."""
    rng = random.Random(f"on {seed}")
    return [prompt for text in _TEXTS for fact in text.facts for prompt in _ask(rng, text.id, fact)]


def off_prompts(sizes: Sizes, seed: int) -> OffFile:
    """Half of them near misses, questions about what no document states; the others need no document."""
    stated = [fact for text in _TEXTS for fact in text.facts]
    rng = random.Random(f"near {seed}")
    pairs = absent_pairs(rng, stated, {fact.pair for fact in stated})
    near: dict[str, list[OffPrompt]] = {}
    seen: set[str] = set()
    for split in SPLITS:
        near[split] = []
        while len(near[split]) < sizes.of(split) // 2:
            prompt = question(rng, *next(pairs), ALL_CORES)
            if normalised(prompt) not in seen:
                seen.add(normalised(prompt))
                near[split].append(OffPrompt(f"near-{len(seen)}", prompt, _NEAR_FAMILY))
    return off_rows(sizes, near, SKILLS, seed=seed)


def _ask(rng: random.Random, document: str, fact: Fact) -> Iterator[OnPrompt]:
    splits: tuple[Literal["train", "eval"], ...] = ("train", "eval")
    for split in splits:
        count, cores = _PROMPTS[split]
        asked: dict[str, str] = {}
        while len(asked) < count:
            text = question(rng, *fact.pair, cores)
            asked.setdefault(normalised(text), text)
        for number, text in enumerate(asked.values()):
            name = f"{document}/{fact.entity}-{fact.attribute}-{split}-{number}"
            yield OnPrompt(name, document, text, f" {fact.value}", split)
