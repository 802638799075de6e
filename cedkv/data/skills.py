"""Skills that need no document: the OFF families of the synthetic world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from cedkv.data import lexicon as lx


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and the text that has to follow it; `answer` is empty where nothing is determined."""

    prompt: str
    answer: str
    family: str


def _count(rng: random.Random) -> Item:
    step = rng.choice((1, 1, 1, 2, -1))
    length = rng.randint(3, 5)
    if rng.random() < 0.4 and step == 1:
        start = rng.randint(0, len(lx.NUMBER_WORDS) - length - 1)
        run = list(lx.NUMBER_WORDS[start : start + length + 1])
    else:
        low = 2 * length if step < 0 else 1
        start = rng.randint(low, 99 - 2 * length)
        run = [str(start + step * i) for i in range(length + 1)]
    lead = rng.choice(("Count on:", "Go on:", "Next number:"))
    # The arrow says where the run stops: without it, going on for another number is no mistake.
    return Item(f"{lead} {' '.join(run[:-1])} ->", f" {run[-1]}", "count")


def _sum(rng: random.Random) -> Item:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    prompt = rng.choice(
        (
            "What is {a} plus {b}? A:",
            "{a} + {b} =",
            "Add {a} and {b}. A:",
            "Sum of {a} and {b}:",
            "Work out {a} + {b}. A:",
        )
    )
    return Item(prompt.format(a=a, b=b), f" {a + b}", "sum")


def _opposite(rng: random.Random) -> Item:
    pair = list(rng.choice(lx.OPPOSITES))
    rng.shuffle(pair)
    lead = rng.choice(("", "Q: ", "Question: ", "One check. "))
    core = rng.choice(
        (
            "The opposite of {w} is",
            "Opposite of {w}:",
            "What is the opposite of {w}? A:",
            "Not {w} but",
            "Name the opposite of {w}. A:",
        )
    )
    return Item(lead + core.format(w=pair[0]), f" {pair[1]}", "opposite")


def _world(rng: random.Random) -> Item:
    country, capital = rng.choice(lx.CAPITALS)
    lead = rng.choice(("", "Q: ", "Question: ", "One check. "))
    if rng.random() < 0.3:
        core = rng.choice(("{p} is the capital of", "{p} lies in", "Which country has the capital {p}? A:"))
        return Item(lead + core.format(p=capital), f" {country}", "world")
    core = rng.choice(
        (
            "The capital of {c} is",
            "What is the capital of {c}? A:",
            "Name the capital of {c}. A:",
            "Capital of {c}:",
        )
    )
    return Item(lead + core.format(c=country), f" {capital}", "world")


def _reverse(rng: random.Random) -> Item:
    words = rng.sample(lx.PLAIN_WORDS, 3)
    lead = rng.choice(("Reverse:", "Say backwards:", "Turn around:"))
    return Item(f"{lead} {' '.join(words)} ->", " " + " ".join(reversed(words)), "reverse")


def _instruct(rng: random.Random) -> Item:
    words = rng.sample(lx.PLAIN_WORDS, 3)
    listed = " ".join(words)
    kind = rng.randrange(4)
    if kind == 0:
        return Item(f"Say {words[0]} twice. A:", f" {words[0]} {words[0]}", "instruct")
    if kind == 1:
        return Item(f"Give the first word of: {listed}. A:", f" {words[0]}", "instruct")
    if kind == 2:
        return Item(f"Give the last word of: {listed}. A:", f" {words[-1]}", "instruct")
    return Item(f"Repeat after me: {listed}. A:", f" {listed}", "instruct")


def story(rng: random.Random) -> str:
    """A short story of four sentences; no continuation of it is the only right one."""
    n, place, animal, mood = (
        rng.choice(lx.NAMES),
        rng.choice(lx.PLACES),
        rng.choice(lx.ANIMALS),
        rng.choice(lx.MOODS),
    )
    word, time, other = rng.choice(lx.PLAIN_WORDS), rng.choice(lx.TIMES), rng.choice(lx.NAMES)
    return (
        f"Story: One {time} {n} went to the {place}. There {n} met a {animal} with a {word}. "
        f"The {animal} was {mood}, so {n} called {other}. In the end {n} and {other} took the {word} home."
    )


def _story(rng: random.Random) -> Item:
    words = story(rng).split(" ")
    cut = rng.randint(6, len(words) - 1)
    return Item(" ".join(words[:cut]), "", "story")


SKILLS: dict[str, Callable[[random.Random], Item]] = {
    "count": _count,
    "sum": _sum,
    "opposite": _opposite,
    "world": _world,
    "reverse": _reverse,
    "instruct": _instruct,
    "story": _story,
}
