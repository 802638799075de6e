"""The synthetic world: documents that state facts, and questions about them.

A document states `facts_per_document` facts (entity, attribute, value) among free sentences. What follows a value
varies (a delimiter, a function word, a clause), so that a reader cannot rely on the full stop to carry the fact.
A question about a fact no document of the bank states has the answer `unknown`, with or without a document.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cedkv.data import lexicon as lx
from cedkv.data.records import Document, Span

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

UNKNOWN = " unknown"

STATEMENTS = (
    "{n}'s {a} is {v}",
    "the {a} of {n} is {v}",
    "for {n} the {a} was {v}",
    "{n} has a {a}, namely {v}",
    "people say that {n}'s {a} is {v}",
    "as {a} {n} chose {v}",
    "the {a} that {n} has is {v}",
    "{n} told us that the {a} is {v}",
)
# Most of them put a word, not a delimiter, behind the value.
ENDINGS = (
    ".",
    ".",
    ",",
    " now.",
    " today.",
    " and stays so.",
    " since spring.",
    " as they say.",
    " but few know it.",
    " indeed.",
)

HEADS = ("Q: ", "Question: ", "", "Hello. ", "One check. ", "I wonder. ")
TAILS = (" A:", " Answer:", " It is")
TRAIN_CORES = (
    "What is {n}'s {a}?",
    "What is the {a} of {n}?",
    "Which {a} does {n} have?",
    "Do you know {n}'s {a}?",
    "Name the {a} of {n}.",
    "Tell me {n}'s {a}.",
    "Please tell the {a} that {n} has.",
    "As for {n}, which {a} is it?",
    "The {a} of {n}, what is it?",
    "Say {n}'s {a}.",
    "{n}, what is the {a}?",
    "About {n}: which {a}?",
    "Does {n} have a {a}, and which?",
)
# What a memory is trained on: the model's own phrasings, and some that the model never saw either. A memory that only knows
# questions worded as the model likes them learns a threshold that is too narrow for others.
ON_TRAIN_CORES = (
    *TRAIN_CORES,
    "Give the {a} of {n}.",
    "I wonder what the {a} of {n} is.",
    "You know {n}, but which {a}?",
    "Which {a} has {n}?",
    "Say which {a} {n} has.",
    "So {n} has what {a}?",
    "Know {n}? Tell the {a}.",
    "For {n}, the {a} is what?",
    "Tell us what the {a} that {n} has is.",
)
# Held out from both, the embedded model and the memories: the phrasings of ON evaluation.
EVAL_CORES = (
    "{n} has which {a}?",
    "Please say what the {a} of {n} is.",
    "I know {n}, but what is the {a}?",
)
ALL_CORES = ON_TRAIN_CORES + EVAL_CORES


@dataclass(frozen=True, slots=True)
class Fact:
    """`entity`'s `attribute` is `value`."""

    entity: str
    attribute: str
    value: str

    @property
    def pair(self) -> tuple[str, str]:
        """What the fact is about: (entity, attribute)."""
        return (self.entity, self.attribute)


def draw_facts(
    rng: random.Random, count: int, taken: Collection[tuple[str, str]] = (), *, crowded: bool = False
) -> list[Fact]:
    """`count` facts over about half as many entities, none about a pair in `taken`.

    Args:
        crowded: few attributes and many entities, so that an attribute alone hardly ever tells the fact.
    """
    attributes = rng.sample(list(lx.ATTRIBUTES), rng.randint(1, 3)) if crowded else list(lx.ATTRIBUTES)
    entities = rng.sample(lx.NAMES, count if crowded else max(2, (count + 1) // 2))
    pairs = _open_pairs(entities, attributes, taken)
    while len(pairs) < count:  # the documents before may have used these entities up
        entities.append(rng.choice([name for name in lx.NAMES if name not in entities]))
        pairs = _open_pairs(entities, attributes, taken)
    return [Fact(e, a, rng.choice(lx.ATTRIBUTES[a])) for e, a in rng.sample(pairs, count)]


def _open_pairs(
    entities: list[str], attributes: list[str], taken: Collection[tuple[str, str]]
) -> list[tuple[str, str]]:
    return [(e, a) for e in entities for a in attributes if (e, a) not in taken]


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def state_fact(rng: random.Random, fact: Fact) -> tuple[str, list[Span]]:
    """One sentence that states `fact`, and where its key words and its value stand in it."""
    template = _capitalise(rng.choice(STATEMENTS) + rng.choice(ENDINGS))
    text, spans, rest = "", [], template
    while (start := rest.find("{")) >= 0:
        field = rest[start + 1]
        word = {"n": fact.entity, "a": fact.attribute, "v": fact.value}[field]
        text += rest[:start]
        spans.append(Span(len(text), len(text) + len(word), "value" if field == "v" else "key"))
        text, rest = text + word, rest[start + 3 :]
    return text + rest, spans


def free_sentence(rng: random.Random) -> str:
    """A sentence that states no fact; some name a person, so that a name alone tells nothing."""
    n, place, animal = rng.choice(lx.NAMES), rng.choice(lx.PLACES), rng.choice(lx.ANIMALS)
    mood, time, word = rng.choice(lx.MOODS), rng.choice(lx.TIMES), rng.choice(lx.PLAIN_WORDS)
    return rng.choice(
        (
            f"The {place} was quiet that {time}.",
            f"{n} walked to the {place} with a {word}.",
            f"A {animal} slept near the {place} until {time}.",
            f"In the {time} the {word} lay by the {place},",
            f"{n} felt {mood} and looked at the {animal}.",
            f"Nobody found the {word} in the {place}.",
            f"Then the {time} came and the {animal} was gone.",
        )
    )


def compose_document(
    rng: random.Random, document_id: str, facts: list[Fact], free_sentences: int
) -> Document:
    """Statements and free sentences in random order, the facts' words marked."""
    parts: list[tuple[str, list[Span]]] = [state_fact(rng, fact) for fact in facts]
    parts += [(free_sentence(rng), []) for _ in range(free_sentences)]
    rng.shuffle(parts)
    text, spans = "", []
    for sentence, marks in parts:
        lead = " " if text else ""
        offset = len(text) + len(lead)
        spans += [Span(offset + m.start, offset + m.stop, m.role) for m in marks]
        text += lead + sentence
    return Document(document_id, text, tuple(spans))


def question(rng: random.Random, entity: str, attribute: str, cores: tuple[str, ...] = TRAIN_CORES) -> str:
    """A question about (entity, attribute) in one of the phrasings `cores`."""
    core = rng.choice(cores).format(n=entity, a=attribute)
    return rng.choice(HEADS) + core + rng.choice(TAILS)


def absent_pairs(
    rng: random.Random, facts: list[Fact], taken: Collection[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Endless near misses of `facts`: same entity with another attribute, or same attribute with another entity."""
    attributes = list(lx.ATTRIBUTES)
    while True:
        fact = rng.choice(facts)
        swap_entity = rng.random() < 0.5
        pair = (
            (rng.choice(lx.NAMES), fact.attribute) if swap_entity else (fact.entity, rng.choice(attributes))
        )
        if pair not in taken:
            yield pair
