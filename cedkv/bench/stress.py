"""Stress evaluation, in pairs (prompt, state) per second: cedkv, whole passes, peft, and the floor of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cedkv.bench import peers
from cedkv.bench.counted import check_count
from cedkv.bench.floor import Floor, square_rate
from cedkv.bench.options import EMBEDDED, Options
from cedkv.bench.rows import PROBE_TOLERANCE, TOLERANCE, Agreement, Row, Section, largest_difference
from cedkv.bench.subject import Subject, random_tokens
from cedkv.bench.timing import Spread, interleaved, synchroniser
from cedkv.evaluate import choose_shortcut, probe_of, stress
from cedkv.injection.tree import Ids
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.memory.state import States
from cedkv.models.types import CausalLM

NAME = "stress"
OURS, EVERY, HF, FLOOR = "cedkv", "cedkv, slots in every layer", "plain HF", "floor"


@dataclass(frozen=True, slots=True)
class Ours:
    """cedkv's way over fixed prompts: states, and a trunk that ends where they enter. `seconds`: to make the trunk."""

    model: CausalLM
    states: States
    trunk: Trunk
    seconds: float

    @property
    def shortcut(self) -> Shortcut:
        """What its passes leave out."""
        return self.trunk.shortcut

    def kl(self, batch_rows: int) -> Tensor:
        """KL(student || base) [U, N]."""
        return stress(self.model, self.states, self.trunk, batch_rows=batch_rows).kl


def prepare(model: CausalLM, states: States, prompts: tuple[Ids, ...], dtype: str, batch_rows: int) -> Ours:
    """The shortest way that agrees on a probe, chosen as a run chooses it, and the trunk for it."""
    probe = probe_of(prompts)
    few = states.select(torch.arange(min(states.count, 8), device=model.device))
    shortcut, _ = choose_shortcut(model, few, probe, PROBE_TOLERANCE[dtype])
    wait = synchroniser(model.device)
    wait()
    started = time.perf_counter()
    trunk = Trunk(model, prompts, states.layers[0], shortcut=shortcut, batch_rows=batch_rows)
    wait()
    return Ours(model, states, trunk, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Rival:
    """One way to the same table of KLs: `run` gives it, `reference` computes it, or its first columns, another way."""

    name: str
    computed: str
    pairs: int
    run: Callable[[], Tensor]
    against: str
    reference: Callable[[], Tensor]
    found: list[Tensor] = field(default_factory=list)

    def timed(self) -> None:
        """Run, and keep what came out."""
        self.found[:] = [self.run()]

    def row(self, section: str, spread: Spread, dtype: str) -> Row:
        """Pairs per second, checked."""
        kl, expected = self.found[0], self.reference()
        apart = largest_difference(kl[:, : expected.shape[1]], expected)
        extra = {"pairs": self.pairs, "kl_median": kl.median().item(), "kl_max": kl.max().item()}
        checked = Agreement(self.against, apart, TOLERANCE[dtype])
        return Row(section, self.name, self.computed, "pairs/s", spread.rate(self.pairs), checked, extra)


def stress_section(subject: Subject, options: Options) -> Section:
    """Time the rivals in turns, and compare every KL that they found."""
    scale, model = options.scale, subject.model
    states = subject.states(scale.states, subject.top)
    ours = prepare(model, states, subject.prompts, options.dtype, scale.batch_rows)
    rivals = _rivals(subject, options, ours)
    floor = Floor(model, states, ours.trunk, scale.batch_rows)
    wait = synchroniser(model.device)
    turns: dict[str, Callable[[], object]] = {rival.name: rival.timed for rival in rivals}
    seconds = interleaved(turns | {FLOOR: lambda: floor.seconds(wait)}, scale.repeats, wait)
    square = square_rate(scale.square, getattr(torch, options.dtype), model.device, wait)
    pairs = rivals[0].pairs
    rows = [rival.row(NAME, seconds[rival.name], options.dtype) for rival in rivals]
    checked = check_count(model, states, subject.prompts[0])
    rows.append(_floor_row(floor, seconds[FLOOR], pairs, checked))
    rows.append(_square_row(floor.macs / pairs, square, scale.square))
    per_pair = {rival.name: seconds[rival.name].times(1 / rival.pairs) for rival in rivals}
    per_pair[FLOOR] = seconds[FLOOR].times(1 / pairs)
    summary = _summary(per_pair, floor.macs / pairs / square)
    if subject.name != EMBEDDED:  # its prompts begin alike as they are
        alike, ratio = _begun_alike(subject, options, states)
        rows += alike
        summary["stress_begun_alike_vs_hf"] = ratio
    return Section(NAME, "Stress evaluation", tuple(rows), _notes(subject, options, ours), summary)


def _begun_alike(subject: Subject, options: Options, states: States) -> tuple[list[Row], float]:
    """The same prompts behind one common beginning, as behind a chat template: two rows, and their ratio per pair."""
    scale, model = options.scale, subject.model
    start = random_tokens(scale.beginning, model.config.get_text_config().vocab_size, seed=7)
    behind = replace(subject, prompts=tuple(start + prompt for prompt in subject.prompts))
    ours = prepare(model, states, behind.prompts, options.dtype, scale.batch_rows)
    found = peers.groups(model, behind.prompts, scale.batch_rows)
    rivals = [
        replace(
            rival,
            name=f"{rival.name}, begun alike",
            computed=f"the same behind {scale.beginning} common tokens",
        )
        for rival in _top_layers(behind, options, ours, found)
    ]
    wait = synchroniser(model.device)
    seconds = interleaved({rival.name: rival.timed for rival in rivals}, scale.repeats, wait)
    rows = [rival.row(NAME, seconds[rival.name], options.dtype) for rival in rivals]
    first, second = (seconds[rival.name].median / rival.pairs for rival in rivals)
    return rows, second / first


def _rivals(subject: Subject, options: Options, ours: Ours) -> list[Rival]:
    """All but the floor, cedkv first."""
    scale, model, prompts = options.scale, subject.model, subject.prompts
    rows = scale.batch_rows
    every = subject.states(scale.peer_states, subject.every)
    deep = prepare(model, every, prompts, options.dtype, rows)
    found = peers.groups(model, prompts, rows)
    some = f"{len(prompts)} prompts × {scale.peer_states} states"
    in_all = Rival(
        EVERY,
        f"{some}, slots in all layers",
        len(prompts) * scale.peer_states,
        lambda: deep.kl(rows),
        "plain HF, all layers",
        lambda: peers.plain_kl(model, every, found, rows),
    )
    by_peers = [by_peft(subject, kind, every, found, some) for kind in peers.KINDS if options.peers]
    return [*_top_layers(subject, options, ours, found), in_all, *by_peers]


def _top_layers(
    subject: Subject, options: Options, ours: Ours, found: list[peers.Group]
) -> tuple[Rival, Rival]:
    """cedkv, and whole passes with a few of its states, against which it is checked."""
    scale, model, prompts = options.scale, subject.model, subject.prompts
    rows, count = scale.batch_rows, len(prompts)
    few = subject.states(scale.peer_states, subject.top)
    top = f"{scale.slots} slots in the top {len(subject.top)} of {len(subject.every)} layers"
    return (
        Rival(
            OURS,
            f"{count} prompts × {scale.states} states, {top}, from the trunk",
            count * scale.states,
            lambda: ours.kl(rows),
            f"plain HF, first {scale.peer_states} states",
            lambda: peers.plain_kl(model, few, found, rows),
        ),
        Rival(
            HF,
            f"{count} prompts × {scale.peer_states} states, {top}, whole passes",
            count * scale.peer_states,
            lambda: peers.plain_kl(model, few, found, rows),
            "stress(plain=True)",
            lambda: stress(model, few, prompts, batch_rows=rows, plain=True).kl,
        ),
    )


def by_peft(subject: Subject, kind: peers.Kind, every: States, found: list[peers.Group], some: str) -> Rival:
    """An adapter of peft, to which the states `every` come one after the other."""
    peer = peers.adapter(subject.model, kind, subject.slots)
    return Rival(
        peers.CALLED[kind],
        f"{some}, slots in all layers, a pass per state",
        sum(len(group.places) for group in found) * every.count,
        lambda: peers.peft_kl(peer, every, found),
        "injection at all layers, positions shifted",
        lambda: peers.shifted_kl(subject.model, every, found),
    )


def _floor_row(floor: Floor, spread: Spread, pairs: int, checked: Agreement) -> Row:
    each = floor.macs / pairs
    computed = f"{each / 1e6:.1f} million multiply-adds per pair, shared beginnings once; products of the pass's own shapes"
    extra = {"macs_per_pair": each, "gflop_per_s": spread.rate(2e-9 * floor.macs).median}
    return Row(NAME, FLOOR, computed, "pairs/s", spread.rate(pairs), checked, extra)


def _square_row(each: float, rate: float, size: int) -> Row:
    """The floor at a rate that no pass reaches: that of a large square product."""
    computed = f"the same at the rate of one {size} × {size} product"
    extra = {"macs_per_pair": each, "gflop_per_s": 2e-9 * rate}
    return Row(NAME, "floor, square product", computed, "pairs/s", Spread((rate / each,)), None, extra)


def _notes(subject: Subject, options: Options, ours: Ours) -> tuple[str, ...]:
    scale = options.scale
    lengths = [len(prompt) for prompt in subject.prompts]
    measured = (
        f"Prompts of {min(lengths)} to {max(lengths)} tokens, at most {scale.batch_rows} rows a pass. All other ways "
        f"run on the first {scale.peer_states} of {scale.states} states: rates are per pair."
    )
    left_out = (
        f"Left out of cedkv's time: the trunk, made once in {ours.seconds:.2f} s; out of everybody's: the base's answers. "
        f"Shortcut {ours.shortcut.name.lower()}."
    )
    checks = (
        "Differences are of KLs in nats, relative to a KL over one nat; the floor's is that of the products counted in a "
        "plain pass here and by torch's FlopCounterMode."
    )
    notes = [measured, left_out, checks]
    if options.peers:
        notes.append("peft knows no layer scope: its slots, as many, are in every layer.")
    return tuple(notes)


def _summary(per_pair: dict[str, Spread], square: float) -> dict[str, float]:
    """Ratios of medians; how many times faster cedkv is, and how much longer than the floor it takes."""
    ours = per_pair[OURS].median
    cartridge = per_pair.get(peers.CALLED["cartridge"])
    found = {
        "stress_vs_hf": per_pair[HF].median / ours,
        "stress_over_floor": ours / per_pair[FLOOR].median,
        "stress_over_square_floor": ours / square,
    }
    return found if cartridge is None else found | {"stress_vs_peft_cartridge": cartridge.median / ours}
