"""What injection promises, on small random models of every family in the matrix.

A window of 6 tokens, where a family has one, is shorter than the documents (20) and than the prompts (9).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cedkv.injection import AttentionCall, capture, inject, observe, positions_behind
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, uses_rope

DOCUMENT, PROMPT = 20, 9


def logits(model, ids: Tensor, **inputs) -> Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits


def padded(ids: Tensor, lengths: list[int], side: str) -> dict[str, Tensor]:
    """The first `lengths[b]` tokens of each row, padded on `side`, with their mask and their positions."""
    width = max(lengths)
    rows, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width).long()
    for b, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        rows[b, where], mask[b, where] = ids[b, :length], 1
    return {"ids": rows, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_an_empty_memory_changes_no_bit_of_the_logits(model, tiny, side):
    ids = tiny.tokens(3, PROMPT)
    inputs = {"ids": ids} if side == "none" else padded(ids, [9, 6, 4], side)
    memory = tiny.memory(model)
    bare = logits(model, **inputs)
    with inject(model, memory):
        assert (logits(model, **inputs) - bare).abs().max() > 1e-2  # a real memory is no bypass
    for nothing in (memory.empty(), None):
        with inject(model, nothing):
            assert torch.equal(logits(model, **inputs), bare)


def test_leaving_the_block_restores_the_model_bitwise(model, tiny):
    ids, memory = tiny.tokens(2, PROMPT), tiny.memory(model)
    bare, attention = logits(model, ids), model.config._attn_implementation
    with inject(model, memory):
        assert not torch.equal(logits(model, ids), bare)
    assert torch.equal(logits(model, ids), bare)
    with pytest.raises(IndexError), inject(model, memory):
        logits(model, ids + 1000)  # no such tokens
    assert torch.equal(logits(model, ids), bare)
    assert model.config._attn_implementation == attention


def test_gradients_reach_every_slot_and_nothing_else(model, tiny):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = tiny.memory(model)
    slots = [*memory.keys.values(), *memory.values.values()]
    for tensor in slots:
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(slots, lr=0.01)
    with inject(model, memory):
        logits(model, tiny.tokens(2, PROMPT)).log_softmax(-1)[..., 5].sum().backward()
    for tensor in slots:
        assert tensor.grad is not None
        # [1, H, S, D]: every slot of every head matters
        assert (tensor.grad.abs().amax(-1) > 0).all()
    optimiser.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bias_of_log_two_is_the_slot_twice(model, tiny):
    """Two equal keys take as much weight as one whose score is higher by log 2."""
    ids, memory = tiny.tokens(2, PROMPT), tiny.memory(model)
    bare = logits(model, ids)
    twice = States(
        *({i: x[:, :, [0, 0, 1, 2]] for i, x in part.items()} for part in (memory.keys, memory.values))
    )
    with inject(model, twice):
        wanted = logits(model, ids)
    for heads in (1, 2, model.config.num_attention_heads):
        bias = torch.zeros(1, heads, 3)
        bias[:, :, 0] = torch.tensor(2.0).log()
        with inject(model, replace(memory, bias=dict.fromkeys(memory.layers, bias))):
            torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=1e-4)
    closed = torch.full((1, 1, 3), -1e4)
    with inject(model, replace(memory, bias=dict.fromkeys(memory.layers, closed))):
        torch.testing.assert_close(logits(model, ids), bare, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_does_not_depend_on_its_padding(model, tiny, side):
    ids, lengths, memory = tiny.tokens(3, PROMPT), [9, 6, 2], tiny.memory(model, states=3)
    rows = torch.tensor([2, 0, 1])
    with inject(model, memory, rows):
        got = logits(model, **padded(ids, lengths, side)).log_softmax(-1)
    for b, length in enumerate(lengths):
        with inject(model, memory.select(rows[b : b + 1])):
            alone = logits(model, ids[b : b + 1, :length]).log_softmax(-1)
        here = got[b, -length:] if side == "left" else got[b, :length]
        torch.testing.assert_close(here, alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", [0, 1])
def test_the_whole_document_injected_everywhere_is_the_model_reading_it(model, tiny, distance):
    document, prompt = tiny.tokens(DOCUMENT, seed=1), tiny.tokens(1, PROMPT, seed=2)
    read = logits(model, torch.cat([document[None], prompt], dim=1))[:, DOCUMENT:].log_softmax(-1)
    atoms = capture(model, "d", tuple(document.tolist()), ("content",) * DOCUMENT, distance)
    with inject(model, atoms.as_states()):
        behind = positions_behind(model, atoms.as_states(), PROMPT, distance)
        injected = logits(model, prompt, position_ids=behind).log_softmax(-1)
    assert (read - logits(model, prompt).log_softmax(-1)).abs().max() > 0.1
    assert (read - injected).abs().max() <= 1e-4


def test_every_row_gets_its_own_state(model, tiny):
    ids, memory = tiny.tokens(4, PROMPT), tiny.memory(model, states=3)
    rows = torch.tensor([2, 0, 2, 1])
    with inject(model, memory, rows):
        together = logits(model, ids)
    for b, state in enumerate(rows):
        with inject(model, memory.select(state[None])):
            torch.testing.assert_close(together[b : b + 1], logits(model, ids[b : b + 1]), atol=1e-5, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-2


def test_greedy_generation_with_a_cache_is_generation_without_one(model, tiny):
    ids, memory = tiny.tokens(2, PROMPT), tiny.memory(model, states=2)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = ids
    with inject(model, memory, torch.tensor([1, 0])):
        for _ in range(8):
            following = logits(model, wanted)[:, -1].argmax(-1, keepdim=True)
            wanted = torch.cat([wanted, following], dim=1)
        for cache in (True, False):
            assert torch.equal(model.generate(ids, use_cache=cache, **settings), wanted)
    assert not torch.equal(model.generate(ids, **settings), wanted)


def test_generation_of_padded_rows_is_generation_row_by_row(model, tiny):
    ids, lengths, memory = tiny.tokens(3, PROMPT), [9, 4, 7], tiny.memory(model, states=3)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    rows, batch = torch.tensor([1, 2, 0]), padded(ids, lengths, "left")
    with inject(model, memory, rows):
        together = model.generate(batch["ids"], attention_mask=batch["attention_mask"], **settings)
    for b, length in enumerate(lengths):
        with inject(model, memory.select(rows[b : b + 1])):
            alone = model.generate(ids[b : b + 1, :length], **settings)
        assert torch.equal(together[b, -5:], alone[0, -5:])


def test_beams_keep_the_state_of_their_prompt(model, tiny):
    ids, memory = tiny.tokens(2, PROMPT), tiny.memory(model, states=2)
    settings = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    settings |= {"pad_token_id": 0}
    with inject(model, memory, torch.tensor([1, 0])):
        together = model.generate(ids, **settings)
    for b, state in enumerate([1, 0]):
        with inject(model, memory.select(torch.tensor([state]))):
            assert torch.equal(model.generate(ids[b : b + 1], **settings)[0], together[b])


def last_scores(call: AttentionCall) -> Tensor:
    """Attention logits [H, keys] of the last token."""
    key = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
    return (call.query[0, :, -1:] @ key[0].transpose(-1, -2))[:, 0] * call.scaling


def test_a_slot_stands_where_its_token_stood(model, tiny):
    """At the bottom layer, where a query depends on the token and its position alone, slots cut out of a document get the
    attention logits that their tokens get from the prompt in the teacher's context."""
    document, prompt = tiny.tokens(DOCUMENT, seed=1), tiny.tokens(1, PROMPT, seed=2)
    bottom = min(layer.index for layer in attention_modules(model).values())
    pick, calls = torch.tensor([1, 7, 19]), []
    with observe(model, (bottom,), calls.append):
        logits(model, torch.cat([document[None], prompt], dim=1))
    atoms = capture(model, "d", tuple(document.tolist()), ("content",) * DOCUMENT)
    slots = States({bottom: atoms.keys[bottom][None, :, pick]}, {bottom: atoms.values[bottom][None, :, pick]})
    # Learned absolute positions cannot move: there the prompt has to stand where the teacher's copy stands.
    behind = None if uses_rope(model) else positions_behind(model, atoms.as_states(), PROMPT)
    with inject(model, slots, observer=calls.append):
        logits(model, prompt, position_ids=behind)
    read, injected = last_scores(calls[0])[:, pick], last_scores(calls[1])[:, : calls[1].slots]
    assert (read - read.mean(1, keepdim=True)).abs().max() > 1e-2
    torch.testing.assert_close(injected, read, atol=1e-4, rtol=0)
