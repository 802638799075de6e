"""The slot gate: where it starts follows from the scores, and what it does is a gain and a bias on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cedkv.injection import AttentionCall, inject
from cedkv.memory.gate import (
    GAINS_TRIED,
    GateAims,
    GateStart,
    Seen,
    SlotGate,
    identity_start,
    measured_start,
    own_slots,
)

KV_HEADS, HEADS, SLOTS = 2, 4, 3
AIMS = GateAims(on=3.0, off=-1.5, max_gain=4.0, ignored=0)


def drawn(prompts: int, seed: int, spread: float = 1.0) -> Seen:
    draw = torch.Generator().manual_seed(seed)
    score = 10 + spread * torch.randn(prompts, HEADS, SLOTS, generator=draw, dtype=torch.float64)
    return Seen(score, 10 + spread * torch.randn(prompts, HEADS, generator=draw, dtype=torch.float64))


def each_head(own: torch.Tensor) -> torch.Tensor:
    """[P, H] where all heads read the same slot."""
    return own[:, None].expand(-1, HEADS)


def odds(seen: Seen, start: GateStart) -> torch.Tensor:
    """Log-odds [P, H, S] behind the gate, written out."""
    gain = start.gain.repeat_interleave(HEADS // KV_HEADS, dim=0)
    return gain * seen.score + start.bias - seen.lse[..., None]


# ---------------------------------------------------------------------------------------------------- where it starts
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), ignored=st.integers(0, 3), off=st.floats(-6, 2), spread=st.floats(0.1, 5))
def test_of_off_prompts_as_many_as_are_ignored_get_over_the_aim(seed, ignored, off, spread):
    aims = replace(AIMS, off=off, ignored=ignored)
    on, others = drawn(9, seed, spread), drawn(50, seed + 1, spread)
    start = measured_start(on, each_head(torch.arange(9) % SLOTS), others, KV_HEADS, aims)
    assert ((odds(others, start) > off + 1e-9).sum(0) == ignored).all()
    assert ((start.gain >= 1) & (start.gain <= aims.max_gain + 1e-9)).all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.05, 1.5))
def test_the_gain_is_the_smallest_that_serves_all_heads_of_a_group(seed, spread):
    """Against a search over the same gains, head by head and prompt by prompt."""
    on, others = drawn(9, seed, spread), drawn(30, seed + 1, spread)
    on = replace(on, score=on.score + 1.5)
    own = torch.arange(9) % SLOTS
    start = measured_start(on, each_head(own), others, KV_HEADS, AIMS)
    gains = [AIMS.max_gain ** (i / (GAINS_TRIED - 1)) for i in range(GAINS_TRIED)]

    def serves(gain: float, group: int, slot: int) -> bool:
        for head in (2 * group, 2 * group + 1):
            mine = [gain * on.score[p, head, slot] - on.lse[p, head] for p in range(9) if own[p] == slot]
            most = max(gain * others.score[u, head, slot] - others.lse[u, head] for u in range(30))
            if min(mine) - most < AIMS.on - AIMS.off:
                return False
        return True

    for group in range(KV_HEADS):
        for slot in range(SLOTS):
            wanted = next((gain for gain in gains if serves(gain, group, slot)), gains[-1])
            assert start.gain[group, slot].item() == pytest.approx(wanted)


def test_own_questions_get_what_they_should_where_there_is_room():
    on, others = drawn(30, 0, 0.1), drawn(200, 1, 0.1)
    on = replace(on, score=on.score + 3)
    own = torch.arange(30) % SLOTS
    start = measured_start(on, each_head(own), others, KV_HEADS, AIMS)
    found = odds(on, start)[torch.arange(30), :, own]
    assert (found >= AIMS.on).float().mean() > 0.9
    assert start.gain.max() < AIMS.max_gain
    assert (start.pivot > others.score.amax(0)).all()
    assert (start.pivot < on.score.amin(0)).all()


def test_a_slot_without_a_question_of_its_own_keeps_its_gain_and_stays_shut():
    on, others = drawn(8, 0), drawn(40, 1)
    start = measured_start(on, each_head(torch.zeros(8, dtype=torch.long)), others, KV_HEADS, AIMS)
    assert (start.gain[:, 1:] == 1).all()
    assert (odds(others, start)[..., 1:] <= AIMS.off + 1e-9).all()


def test_a_prompt_belongs_to_the_slot_it_reads_most():
    layers = [drawn(6, 0), drawn(6, 1)]
    own = torch.tensor([0, 1, 2, 2, 1, 0])
    for seen in layers:
        seen.score[torch.arange(6), :, own] += 20
    for share in ("shared", "layer", "head"):
        for found in own_slots(layers, share, KV_HEADS):
            assert torch.equal(found, each_head(own))


def test_where_anchors_differ_each_layer_and_head_has_the_slot_it_reads_most():
    """Slots of one number are other atoms there; what is louder elsewhere does not count."""
    layers = [drawn(1, 0, spread=0.1), drawn(1, 1, spread=0.1)]
    for layer, (first, second) in enumerate([(0, 1), (2, 1)]):
        layers[layer].score[0, :2, first] += 20 * (layer + 1)
        layers[layer].score[0, 2:, second] += 10
    found = {share: own_slots(layers, share, KV_HEADS) for share in ("shared", "layer", "head")}
    assert [own.tolist() for own in found["shared"]] == [[[2] * 4]] * 2
    assert [own.tolist() for own in found["layer"]] == [[[0] * 4], [[2] * 4]]
    assert [own.tolist() for own in found["head"]] == [[[0, 0, 1, 1]], [[2, 2, 1, 1]]]


# ------------------------------------------------------------------------------------------------------- what it does
@pytest.fixture
def gated(tiny):
    """A bank over a real model, its gate at random values."""

    def make(share: str = "head", **changes):
        model = tiny("qwen3")
        bank = tiny.bank(model, **changes)
        slots = bank.states(4)
        bank.gate = SlotGate(identity_start(slots, HEADS, bank.spec.sink_slots), share)
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in bank.gate.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        return model, bank

    return make


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("share", ["shared", "layer", "head"])
def test_scores_are_what_gain_and_bias_make_of_them(tiny, gated, share, sinks):
    """Seen in the model's own attention; the sinks in front keep their scores."""
    model, bank = gated(share, sink_slots=sinks)
    gate, bank.gate = bank.gate, None
    ids, rows = tiny.tokens(3, 6), torch.tensor([2, 0, 1])
    first = bank.spec.injection[0]

    def scores() -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}

        def look(call: AttentionCall) -> None:
            found[call.layer] = call.scores(1)[:, :, 0, : call.slots]

        with torch.no_grad(), inject(model, bank.states(4), rows, look):
            model(input_ids=ids)
        return found[first]  # behind it the two differ in their hidden states, too

    plain = scores()
    bank.gate = gate
    gain, bias = (x[rows, 0] for x in gate.resolved())
    wanted = gain.repeat_interleave(2, dim=1) * plain[..., sinks:] + bias
    found = scores()
    torch.testing.assert_close(found[..., sinks:], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(found[..., :sinks], plain[..., :sinks])


def test_the_anchors_key_only_grows_or_shrinks(gated):
    _, bank = gated()
    gate, bank.gate = bank.gate, None
    plain, gates = bank.states(4), gate.resolved()[0]
    bank.gate = gate
    for place, layer in enumerate(bank.spec.injection):
        torch.testing.assert_close(bank.states(4).keys[layer], plain.keys[layer] * gates[:, place, ..., None])
        assert torch.equal(bank.states(4).values[layer], plain.values[layer])


@pytest.mark.parametrize(
    ("share", "gains", "shifts"),
    [
        ("shared", (3, 1, 1, 3), (3, 1, 1, 3)),
        ("layer", (3, 2, 1, 3), (3, 2, 1, 3)),
        ("head", (3, 2, 2, 3), (3, 2, 4, 3)),
    ],
)
def test_sharing_decides_what_is_learned_and_not_what_it_starts_from(gated, share, gains, shifts):
    _, bank = gated(share)
    assert {n: p.shape for n, p in bank.gate.named_parameters()} == {"log_gain": gains, "shift": shifts}
    assert [x.shape for x in bank.gate.resolved()] == [(3, 2, 2, 3), (3, 2, 4, 3)]


def test_a_change_of_the_gain_leaves_the_score_at_the_pivot(gated):
    start = GateStart(1 + torch.rand(3, 2, 2, 3), -torch.rand(3, 2, 4, 3), 10 * torch.rand(3, 2, 4, 3))
    gate = SlotGate(start, "head")

    def at_pivot() -> torch.Tensor:
        gain, bias = gate.resolved()
        return gain.repeat_interleave(2, dim=2) * start.pivot + bias

    before = at_pivot()
    with torch.no_grad():
        gate.log_gain.fill_(0.7)
    torch.testing.assert_close(at_pivot(), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        gate.shift.fill_(0.25)
    torch.testing.assert_close(at_pivot(), before + 0.25, atol=1e-5, rtol=1e-5)


def test_gates_of_some_documents_are_those_of_all(gated):
    _, bank = gated()
    rows = torch.tensor([2, 0])
    some, every = bank.states(4, rows), bank.states(4).select(rows)
    for layer in every.layers:
        assert torch.equal(some.keys[layer], every.keys[layer])
        assert torch.equal(some.bias[layer], every.bias[layer])


def test_gradients_reach_gains_and_biases(tiny, gated):
    model, bank = gated()
    with inject(model, bank.states(4), torch.tensor([0, 1, 2])):
        model(input_ids=tiny.tokens(3, 6)).logits.log_softmax(-1)[..., 5].sum().backward()
    for parameter in bank.gate.parameters():
        assert (parameter.grad != 0).all()
