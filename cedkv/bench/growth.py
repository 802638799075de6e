"""How stress evaluation grows in prompts, states, layers and the length of prompts: time, and peak memory.

Memories sit in the top quarter of the layers. One size moves at a time; the trunk is made before and its time is given
beside it. On the axis of states there are as many prompts as a pass has rows, so that every pass is full whatever the
number of states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cedkv.bench import peers
from cedkv.bench.fit import exponent
from cedkv.bench.memory import peak_bytes
from cedkv.bench.options import DEFAULT_SHAPE, EMBEDDED, SHAPES, Growth, Options, Shape
from cedkv.bench.rows import TOLERANCE, Agreement, Row, Section, largest_difference
from cedkv.bench.stress import HF, Ours, Rival, by_peft, prepare
from cedkv.bench.subject import Subject, of_shape, random_tokens
from cedkv.bench.timing import Spread, interleaved, synchroniser
from cedkv.injection.tree import Ids

NAME = "growth"
PROMPTS, STATES, LAYERS, LENGTH = AXES = "prompts", "states", "layers", "prompt length"
EXPECTED = {
    ("time", PROMPTS): "1",
    ("memory", PROMPTS): "0",
    ("time", STATES): "1",
    ("memory", STATES): "0",
    ("time", LAYERS): "1",
    ("memory", LAYERS): "0",
    ("time", LENGTH): "1, past the length where attention weighs more: 2",
    ("memory", LENGTH): "1, attention's masks and scores: 2",
}
CHECKED_PROMPTS, CHECKED_STATES = 4, 2


@dataclass(frozen=True, slots=True)
class Point:
    """One size on one axis: what is run, and what it found."""

    axis: str
    size: int
    subject: Subject
    ours: Ours
    batch_rows: int
    kl: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The axis with its size."""
        return f"{self.axis} {self.size}"

    def run(self) -> None:
        """Evaluate, and keep what came out."""
        self.kl[:] = [self.ours.kl(self.batch_rows)]

    def check(self, dtype: str) -> Agreement:
        """A few prompts and states, by whole passes."""
        few = self.ours.states.select(
            torch.arange(min(CHECKED_STATES, self.ours.states.count), device=self.subject.model.device)
        )
        found = peers.groups(self.subject.model, self.subject.prompts[:CHECKED_PROMPTS], CHECKED_PROMPTS)
        plain = peers.plain_kl(self.subject.model, few, found, CHECKED_PROMPTS * CHECKED_STATES)
        apart = largest_difference(self.kl[0][: len(plain), : few.count], plain)
        return Agreement("plain HF on some pairs", apart, TOLERANCE[dtype])


def growth_section(options: Options, say: Callable[[str], object]) -> Section:
    """Every axis in turn; the embedded model, whose layers are what they are, lends its place to the default shape."""
    growth = options.scale.growth
    name = DEFAULT_SHAPE if options.model == EMBEDDED else options.model
    shape, rows, fits = SHAPES[name], [], []
    summary: dict[str, float] = {}
    for axis in AXES:
        say(f"measuring growth in {axis} ...")
        points = list(_points(axis, shape, growth, options))
        beside = _beside(points[-1], options) if axis == LAYERS else []
        turns: dict[str, Callable[[], object]] = {point.name: point.run for point in points}
        turns |= {rival.name: rival.timed for rival in beside}
        wait = synchroniser(points[0].subject.model.device)
        # Where peers stand beside it the ratio counts, elsewhere an exponent, to which one more turn adds little.
        turn = options.scale.repeats if beside else min(3, options.scale.repeats)
        seconds = interleaved(turns, turn, wait)
        measured = [_row(point, seconds[point.name], options.dtype) for point in points]
        fitted = _fits(axis, measured)
        rows += [*measured, *(rival.row(NAME, seconds[rival.name], options.dtype) for rival in beside)]
        fits += fitted
        summary |= {_key(row): row.value.median for row in fitted} | _ratios(points[-1], beside, seconds)
        del points, beside, turns  # models of many layers
    return Section(NAME, "Growth of stress evaluation", (*rows, *fits), _notes(name, growth), summary)


def _points(axis: str, shape: Shape, growth: Growth, options: Options) -> Iterator[Point]:
    few, rows = growth.few_states, growth.batch_rows
    if axis == LAYERS:
        for layers in growth.layers:
            subject = _subject(shape.of_layers(layers), options, rows, growth.length)
            yield Point(axis, layers, subject, _ours(subject, few, rows * few, options), rows * few)
        return
    subject = _subject(shape, options, 1, growth.length)
    vocabulary = shape.settings["vocab_size"]
    sizes = {PROMPTS: growth.prompts, STATES: growth.states, LENGTH: growth.lengths}[axis]
    for size in sizes:
        count = {PROMPTS: size, STATES: rows, LENGTH: growth.few_prompts}[axis]
        length = size if axis == LENGTH else growth.length
        prompts = _prompts(count, length, vocabulary)
        states = size if axis == STATES else few
        at_once = growth.few_prompts * few if axis == LENGTH else rows
        there = replace(subject, prompts=prompts)
        yield Point(axis, size, there, _ours(there, states, at_once, options), at_once)


def _ours(subject: Subject, states: int, rows: int, options: Options) -> Ours:
    return prepare(subject.model, subject.states(states, subject.top), subject.prompts, options.dtype, rows)


def _subject(shape: Shape, options: Options, prompts: int, length: int) -> Subject:
    return of_shape("growth", shape, options, _prompts(prompts, length, shape.settings["vocab_size"]))


def _prompts(count: int, length: int, vocabulary: int) -> tuple[Ids, ...]:
    return tuple(random_tokens(length, vocabulary, seed=n) for n in range(count))


def _beside(deepest: Point, options: Options) -> list[Rival]:
    """The peers at the most layers, on a few states."""
    subject, count, rows = deepest.subject, options.scale.growth.peer_states, deepest.batch_rows
    top, every = (subject.states(count, layers) for layers in (subject.top, subject.every))
    found = peers.groups(subject.model, subject.prompts, rows)
    some = f"{len(subject.prompts)} prompts × {count} states, {deepest.size} layers"
    plain = Rival(
        HF,
        f"{some}, slots in the top {len(subject.top)}, whole passes",
        len(subject.prompts) * count,
        lambda: peers.plain_kl(subject.model, top, found, rows),
        "cedkv",
        lambda: deepest.kl[0][:, :count],
    )
    return [plain, *([by_peft(subject, "cartridge", every, found, some)] if options.peers else [])]


def _row(point: Point, spread: Spread, dtype: str) -> Row:
    peak = peak_bytes(point.run, point.subject.model.device)
    states, prompts = point.ours.states, point.subject.prompts
    computed = (
        f"{len(prompts)} prompts of {len(prompts[0])} tokens × {states.count} states, top {len(states.layers)} of "
        f"{len(point.subject.every)} layers"
    )
    extra = {"size": point.size, "peak_mib": peak / 2**20, "trunk_ms": 1000 * point.ours.seconds}
    return Row(NAME, point.name, computed, "ms", spread.times(1000), point.check(dtype), extra)


def _fits(axis: str, rows: Sequence[Row]) -> list[Row]:
    """The exponents of time and of memory along one axis."""
    sizes = [row.extra["size"] for row in rows]
    values = {
        "time": [row.value.median for row in rows],
        "memory": [row.extra["peak_mib"] for row in rows],
    }
    found = []
    for what, measured in values.items():
        fitted = exponent(sizes, measured)
        computed = (
            f"log-log fit over {', '.join(f'{size:.0f}' for size in sizes)}; expected: {EXPECTED[what, axis]}"
        )
        name = f"exponent of {what} in {axis}"
        error = {"standard_error": fitted.error}
        found.append(Row(NAME, name, computed, "", Spread((fitted.value,)), None, error))
    return found


def _key(row: Row) -> str:
    return row.name.replace("exponent of ", "growth_").replace(" ", "_")


def _ratios(deepest: Point, beside: Sequence[Rival], seconds: dict[str, Spread]) -> dict[str, float]:
    """How many times faster cedkv is per pair at the most layers."""
    ours = seconds[deepest.name].median / (len(deepest.subject.prompts) * deepest.ours.states.count)
    keys = {HF: "hf", peers.CALLED["cartridge"]: "peft_cartridge"}
    return {
        f"growth_vs_{keys[rival.name]}_at_{deepest.size}_layers": seconds[rival.name].median
        / rival.pairs
        / ours
        for rival in beside
    }


def _notes(name: str, growth: Growth) -> tuple[str, ...]:
    told = (
        "peak: tensor memory of the evaluation beyond model, trunk and memories. trunk: the time to make it, once; it is in "
        "no other number."
    )
    length, layers = (n * growth.few_states for n in (growth.few_prompts, growth.batch_rows))
    rows = f"at most {growth.batch_rows} rows a pass ({length} in prompt length, {layers} in layers)"
    return f"Shape {name}, {rows}.", told
