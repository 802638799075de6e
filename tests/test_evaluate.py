"""Measurements of a memory, against forward passes made one prompt and one state at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cedkv.data.batching import by_length, by_similar_length, pad_left, pad_right
from cedkv.evaluate import (
    SlotMass,
    StressResult,
    answer_log_probs,
    mean_kl,
    next_log_probs,
    probe_of,
    score_answers,
    stress,
)
from cedkv.injection import inject
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.models.layers import attention_modules

LENGTHS = (5, 3, 8, 5, 1, 5, 3)
STATES = 4


def upper_half(model) -> list[int]:
    layers = [layer.index for layer in attention_modules(model).values()]
    return layers[len(layers) // 2 :]


@pytest.fixture(scope="module")
def prompts(tiny) -> list[tuple[int, ...]]:
    return [tuple(tiny.tokens(n, seed=i).tolist()) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def answers(tiny) -> list[tuple[int, ...]]:
    return [tuple(tiny.tokens(n, seed=50 + i).tolist()) for i, n in enumerate((1, 3, 2, 1, 4, 1, 2))]


def one_by_one(model, states, prompt: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Next-token log-probabilities of the base and under each state, in float64."""
    ids = torch.tensor([prompt])
    base = model(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
    students = []
    for n in range(states.count):
        with inject(model, states.select(torch.tensor([n]))):
            students.append(model(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1))
    return base, students


# ------------------------------------------------------------------------------------------------------------ stress
def test_stress_is_the_loop_over_prompts_and_states(model, tiny, prompts):
    states = tiny.memory(model, STATES, layers=upper_half(model))
    found = stress(model, states, prompts, batch_rows=64)
    assert found.kl.shape == found.student_top.shape == (7, STATES)
    for u, prompt in enumerate(prompts):
        base, students = one_by_one(model, states, prompt)
        assert found.base_top[u] == base.argmax()
        divergences = []
        for n, student in enumerate(students):
            divergences.append((student.exp() * (student - base)).sum().item())  # KL(student || base)
            assert found.kl[u, n].item() == pytest.approx(divergences[-1], abs=1e-5)
            assert found.student_top[u, n] == student.argmax()
        assert found.delta[u].item() == pytest.approx(max(divergences), abs=1e-5)
        assert found.worst_state[u] == divergences.index(max(divergences))
        assert found.typical[u].item() == pytest.approx(divergences[u % STATES], abs=1e-5)
    assert (found.delta > 1e-2).all()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("batch_rows", [1, 2, 3, 5, 9, 1000])
def test_the_size_of_a_batch_changes_nothing(tiny, prompts, batch_rows, plain):
    """Fewer rows than states, a last part that is smaller, several prompts at once."""
    model = tiny("qwen3")
    states = tiny.memory(model, STATES, layers=[1, 2])
    wanted = stress(model, states, prompts, batch_rows=STATES, plain=True)
    found = stress(model, states, prompts, batch_rows=batch_rows, plain=plain)
    torch.testing.assert_close(found.kl, wanted.kl, atol=1e-5, rtol=0)
    assert torch.equal(found.base_top, wanted.base_top)
    assert torch.equal(found.student_top, wanted.student_top)


def test_no_forward_pass_is_larger_than_asked_for(tiny, prompts):
    model, seen = tiny("qwen3"), []
    states = tiny.memory(model, STATES, layers=[1, 2])
    handle = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape[:2].numel()))
    try:
        for shortcut in Shortcut:
            trunk = Trunk(model, prompts, 1, shortcut=shortcut)
            seen.clear()
            stress(model, states, trunk, batch_rows=3)
            assert max(seen) <= 3
            seen.clear()
            stress(model, states, trunk, batch_rows=8)
            assert 3 < max(seen) <= 8
    finally:
        handle.remove()


def test_stress_makes_no_graph(tiny, prompts):
    model = tiny("qwen3")
    states = tiny.memory(model, 2)
    for tensor in states.values.values():
        tensor.requires_grad_()
    assert not stress(model, states, prompts[:2], batch_rows=8).kl.requires_grad


def test_an_empty_memory_has_no_stress_at_all(model, tiny, prompts):
    """Up to how a batch of another shape rounds."""
    states = tiny.memory(model, 2).empty()
    assert stress(model, states, prompts, batch_rows=8).kl.max() < 1e-10


@given(st.integers(1, 12), st.integers(1, 6))
def test_round_robin_assigns_the_states_in_turn(prompts, states):
    kl = torch.arange(prompts * states, dtype=torch.float32).view(prompts, states)
    result = StressResult(kl, torch.zeros(prompts), torch.zeros(prompts, states))
    assert result.typical_state.tolist() == [u % states for u in range(prompts)]
    assert result.typical.tolist() == [kl[u, u % states].item() for u in range(prompts)]
    assert (result.typical <= result.delta).all()


# ----------------------------------------------------------------------------------------------------------- answers
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
@pytest.mark.parametrize("injected", [False, True])
def test_answers_of_several_tokens_are_scored_as_one_by_one(
    model, tiny, prompts, answers, *, batch_rows, injected
):
    states = tiny.memory(model, 3) if injected else None
    rows = torch.tensor([2, 0, 1, 1, 2, 0, 0]) if injected else None
    found = answer_log_probs(model, prompts, answers, batch_rows=batch_rows, states=states, rows=rows)
    assert len(found) == len(prompts)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        own = None if states is None else states.select(rows[i : i + 1])
        with inject(model, own):
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(found[i], logits.log_softmax(-1), atol=2e-5, rtol=0)


def test_answers_can_be_differentiated_in_the_states(tiny, prompts, answers):
    model = tiny("qwen3")
    states = tiny.memory(model, 2)
    for tensor in [*states.keys.values(), *states.values.values()]:
        tensor.requires_grad_()
    rows = torch.tensor([0] * 7)
    scored = answer_log_probs(model, prompts, answers, batch_rows=3, states=states, rows=rows)
    torch.stack([table.mean() for table in scored]).sum().backward()
    for tensor in [*states.keys.values(), *states.values.values()]:
        assert (tensor.grad[0].abs().amax(-1) > 0).all()
        assert (tensor.grad[1] == 0).all()  # no prompt had the second state


def test_exact_match_needs_every_token_and_the_score_is_the_sum():
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log()
    scores = score_answers([table, table, table[:1]], [(0, 1), (0, 2), (1,)])
    assert scores.correct == [True, False, False]
    assert scores.logp == pytest.approx([torch.tensor(p).log().item() for p in (0.42, 0.21, 0.2)])


def test_divergence_is_averaged_over_the_tokens_of_an_answer():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert mean_kl([p], [q]) == pytest.approx([first.item() / 2])


def test_half_precision_is_measured_in_float32(tiny):
    model = tiny.fresh("qwen3").to(torch.bfloat16)
    assert next_log_probs(model, pad_left([(5, 6, 7)], model.device)).dtype == torch.float32


# --------------------------------------------------------------------------------------------------------- slot mass
def test_slot_mass_is_the_mean_over_layers_heads_and_rows(tiny, prompts, answers):
    """Against weights that the eager model reports with the slots as the first keys it has."""
    model, mass = tiny.fresh("qwen3"), SlotMass(1, [])
    model.set_attn_implementation("eager")
    states, rows = tiny.memory(model, 2, slots=3), torch.tensor([0, 1, 0, 1, 0, 1, 0])
    answer_log_probs(model, prompts, answers, batch_rows=100, states=states, rows=rows, observer=mass)
    shares = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with inject(model, states.select(rows[i : i + 1])):
            ids = torch.tensor([prompt + answer[:-1]])
            reported = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        shares.append(torch.stack([w[0, :, -1, :3].sum(-1).mean() for w in reported]).mean())
    assert mass.mean == pytest.approx(torch.stack(shares).mean().item(), abs=1e-5)
    assert 0 < mass.mean < 1


def test_no_slots_hold_no_mass():
    assert SlotMass(1, []).mean == 0.0


# ---------------------------------------------------------------------------------------------------------- batching
@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 5))
def test_groups_hold_one_length_each_and_every_index_once(lengths, rows):
    groups = list(by_length(lengths, rows))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len({lengths[i] for i in group}) == 1 and len(group) <= rows for group in groups)
    assert [lengths[group[0]] for group in groups] == sorted(lengths[group[0]] for group in groups)


@given(st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=7).map(tuple), min_size=1, max_size=5))
def test_padding_stands_on_the_left_and_positions_count_from_each_first_token(sequences):
    batch = pad_left(sequences, torch.device("cpu"))
    width = max(map(len, sequences))
    assert batch.ids.shape == (len(sequences), width)
    for b, sequence in enumerate(sequences):
        pad = width - len(sequence)
        assert batch.ids[b].tolist() == [0] * pad + list(sequence)
        positions = batch.positions.expand(len(sequences), -1)[b]
        assert positions[pad:].tolist() == list(range(len(sequence)))
        if batch.mask is not None:
            assert batch.mask[b].tolist() == [0] * pad + [1] * len(sequence)
    assert (batch.mask is None) == (len(set(map(len, sequences))) == 1)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 9))
def test_groups_of_similar_length_hold_every_index_once_and_little_padding(lengths, rows):
    groups = list(by_similar_length(lengths, rows))
    assert [i for group in groups for i in group] == sorted(range(len(lengths)), key=lambda i: lengths[i])
    for group in groups:
        assert 1 <= len(group) <= rows
        assert 3 * max(lengths[i] for i in group) <= 4 * min(lengths[i] for i in group)


def test_padding_on_the_right_repeats_the_last_token_and_changes_no_row(model, tiny):
    sequences = [tuple(tiny.tokens(n, seed=n).tolist()) for n in (3, 9, 6)]
    batch = pad_right(sequences, model.device)
    assert batch.tolist() == [[*s, *[s[-1]] * (9 - len(s))] for s in sequences]
    together = model(input_ids=batch, use_cache=False).logits
    for row, sequence in zip(together, sequences, strict=True):
        alone = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]
        torch.testing.assert_close(row[: len(sequence)], alone, atol=1e-5, rtol=0)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=40))
def test_a_probe_has_pairs_that_begin_alike_and_the_longest(prompts):
    probe = probe_of(prompts)
    assert set(probe) <= set(prompts)
    assert len(probe) == len(set(probe)) <= 8
    assert max(map(len, probe)) == max(map(len, prompts))
    distinct = sorted(set(prompts))
    assert len(probe) >= min(4, len(distinct))
    neighbours = set(itertools.pairwise(distinct))
    if neighbours:
        assert neighbours & {(a, b) for a in probe for b in probe}
