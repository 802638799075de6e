"""The `with` block itself: what it refuses, how blocks nest, what observers see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.injection import AttentionCall, attention_to, capture, inject, observe
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules


def logits(model, ids: Tensor, **inputs) -> Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits


# ---------------------------------------------------------------------------------------------------------- refusals
def test_an_implementation_that_cannot_carry_slots_is_refused_by_name(tiny):
    model = tiny.fresh("llama")
    memory = tiny.memory(model)
    model.set_attn_implementation("flex_attention")
    refused = pytest.raises(UserError, match=r"'flex_attention' cannot carry slots: .* 'sdpa' or 'eager'")
    with refused, inject(model, memory):
        pass
    with inject(model, None):  # nothing to carry
        pass
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"2 states need `rows`"),
        (torch.tensor([0, 2]), r"rows \[0, 2\] must name states 0 to 1"),
        (torch.tensor([-1, 0]), r"rows \[-1, 0\] must name states 0 to 1"),
        (torch.tensor([[0], [1]]), r"one for each row"),
    ],
)
def test_every_row_must_have_a_state_that_exists(tiny, rows, message):
    model = tiny("llama")
    with pytest.raises(ValueError, match=message), inject(model, tiny.memory(model, states=2), rows):
        pass


def test_a_batch_that_is_no_multiple_of_the_rows_is_refused(tiny):
    model = tiny("llama")
    memory, ids = tiny.memory(model, states=2), tiny.tokens(3, 5)
    refused = pytest.raises(ValueError, match="each of 2 prompts, but the batch has 3 rows")
    with inject(model, memory, torch.tensor([0, 1])), refused:
        logits(model, ids)
    assert model.config._attn_implementation == "sdpa"


def test_states_of_a_larger_model_are_refused(tiny):
    memory = tiny.memory(tiny("gemma3_text"))  # four layers
    message = r"hold layers \[3\], but attention layers of this model are \[0, 1, 2\]"
    with pytest.raises(ValueError, match=message), inject(tiny("qwen3"), memory):
        pass


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_whole_document_is_refused_in_rows_padded_on_the_left(tiny, family):
    model = tiny(family)
    whole = capture(model, "d", tuple(tiny.tokens(8).tolist()), ("content",) * 8).as_states()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with inject(model, whole):
        with pytest.raises(ValueError, match="padded on the left"):
            logits(model, tiny.tokens(2, 5), attention_mask=mask)
        logits(model, tiny.tokens(2, 5), attention_mask=mask.flip(1))  # on the right nothing moves


def test_states_take_the_type_of_the_model(tiny):
    """A memory trained in float32 serves a model in half precision."""
    model, ids = tiny.fresh("qwen3"), tiny.tokens(1, 6)
    memory = tiny.memory(model)
    with inject(model, memory):
        wanted = logits(model, ids)
    model.to(torch.bfloat16)
    with inject(model, memory):
        found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert (found - logits(model, ids)).abs().max() > 0.1
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_states_must_hold_keys_and_values_of_the_same_layers():
    slots = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"layers of keys \[0\] and values \[1\]"):
        States({0: slots}, {1: slots})
    with pytest.raises(ValueError, match="not empty"):
        States({}, {})
    whole = States({0: slots[:1]}, {0: slots[:1]}, torch.arange(-3, 0))
    assert States.stack([whole, whole]).positions.tolist() == [-3, -2, -1]
    for other in (States({0: slots}, {0: slots}), States({0: slots}, {0: slots}, torch.arange(-4, -1))):
        with pytest.raises(ValueError, match="at different positions cannot be one"):
            States.stack([whole, other])


@pytest.mark.parametrize("biased", [False, True])
def test_a_token_at_a_time_gives_what_one_pass_gives(model, tiny, biased):
    """A single query gets no mask at all where it sees everything; slots and their biases must be there all the same."""
    ids, memory = tiny.tokens(2, 6), tiny.memory(model)
    if biased:
        heads = model.config.num_attention_heads
        bias = {i: torch.linspace(-1, 1, heads * memory.slots).view(1, heads, -1) for i in memory.layers}
        memory = replace(memory, bias=bias)
    with inject(model, memory):
        wanted, cache, found = logits(model, ids), None, []
        for n in range(ids.shape[1]):
            out = model(input_ids=ids[:, n : n + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, logits(model, ids), atol=1e-2)


# ----------------------------------------------------------------------------------------------------------- nesting
def test_an_inner_block_stands_alone_and_gives_way_to_the_outer_again(tiny):
    model, ids = tiny("llama"), tiny.tokens(2, 7)
    outer, inner = tiny.memory(model, slots=3), tiny.memory(model, slots=5, layers=[2])
    bare = logits(model, ids)
    with inject(model, inner):
        only_inner = logits(model, ids)
    with inject(model, outer):
        only_outer = logits(model, ids)
        with inject(model, inner):  # the layers it leaves out have no slots, not the outer ones
            assert torch.equal(logits(model, ids), only_inner)
        assert torch.equal(logits(model, ids), only_outer)
        for nothing in (None, outer.empty()):
            with inject(model, nothing):
                assert torch.equal(logits(model, ids), bare)
        assert torch.equal(logits(model, ids), only_outer)
    assert not torch.equal(only_outer, only_inner)
    assert torch.equal(logits(model, ids), bare)


def test_blocks_of_two_models_do_not_meet(tiny):
    one, two, ids = tiny("llama"), tiny.fresh("qwen3"), tiny.tokens(1, 7)
    memories = {model: tiny.memory(model) for model in (one, two)}
    alone = {}
    for model, memory in memories.items():
        with inject(model, memory):
            alone[model] = logits(model, ids)
    with inject(one, memories[one]):
        with inject(two, memories[two]):
            assert torch.equal(logits(one, ids), alone[one])
            assert torch.equal(logits(two, ids), alone[two])
        assert torch.equal(logits(one, ids), alone[one])


# --------------------------------------------------------------------------------------------------------- observing
def test_observing_changes_no_number_beyond_rounding(model, tiny):
    ids = tiny.tokens(2, 9)
    bare, calls = logits(model, ids), []
    layers = tuple(layer.index for layer in attention_modules(model).values())
    with observe(model, layers[1:], calls.append):
        seen = logits(model, ids)
    torch.testing.assert_close(seen, bare, atol=1e-5, rtol=0)
    assert [call.layer for call in calls] == list(layers[1:])
    assert all(call.slots == 0 for call in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("padding", [False, True])
def test_attention_weights_are_those_the_model_reports(family, tiny, padding, dtype):
    """Against `output_attentions`, soft caps, sinks, windows and the masks of half precision included."""
    model = tiny.fresh(family).to(dtype)
    model.set_attn_implementation("eager")
    ids, inputs = tiny.tokens(2, 9), {}
    if padding:
        mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
        inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    reported = model(input_ids=ids, use_cache=False, output_attentions=True, **inputs).attentions
    found: dict[int, Tensor] = {}
    with observe(model, tuple(range(len(reported))), lambda c: found.update({c.layer: c.last_weights(4)})):
        logits(model, ids, **inputs)
    for layer, weights in enumerate(reported):
        tolerance = 1e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(found[layer], weights[:, :, -4:].float(), atol=tolerance, rtol=0)


def test_slot_weights_are_the_share_of_the_softmax_that_slots_take(tiny):
    """One layer of one head worked out by hand: values of one for slots and zero for tokens make the output their share."""
    query, key = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 5, 4)
    call = AttentionCall(0, query, key, torch.zeros(1, 1, 5, 4), None, 0.5, slots=2)
    scores = (query @ key.transpose(-1, -2) * 0.5)[0, 0, 0]
    wanted = scores.exp()[:2].sum() / scores.exp().sum()
    torch.testing.assert_close(call.last_weights(1)[0, 0, 0, :2].sum(), wanted)


def test_where_prompts_look_in_a_document_is_the_teachers_attention(model, tiny, family):
    """`attention_to` against the attention that the eager model reports on document + prompt: two documents at once, a
    shorter prompt among them, and positions that count for more than others; all heads together and by kv head."""
    documents, prompts, lengths = tiny.tokens(2, 20, seed=1), tiny.tokens(3, 9, seed=2), [9, 7, 9]
    layers, rows = tuple(layer.index for layer in attention_modules(model).values())[1:], [1, 0, 0]
    atoms = [capture(model, "d", tuple(ids.tolist()), ("content",) * 20) for ids in documents]
    whole = States.stack([document.as_states() for document in atoms])
    share = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.75, 0, 0], [0, 0, 0, 1]])
    seen, by_head = (
        attention_to(model, whole, prompts, share, layers, rows=torch.tensor(rows), by_head=each)
        for each in (False, True)
    )
    eager = tiny.fresh(family)
    eager.set_attn_implementation("eager")
    for p, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids = torch.cat([documents[row], prompts[p, :length]])[None]
        reported = eager(input_ids=ids, use_cache=False, output_attentions=True).attentions
        counted = share[p, : 4 - (9 - length)]
        for index, layer in enumerate(layers):
            weights = counted @ reported[layer][0, :, -len(counted) :, :20]
            torch.testing.assert_close(seen[index, 0, p], weights.mean(0), atol=1e-5, rtol=0)
            groups = weights.unflatten(0, (by_head.shape[1], -1)).mean(1)
            torch.testing.assert_close(by_head[index, :, p], groups, atol=1e-5, rtol=0)
    assert seen.shape == (len(layers), 1, 3, 20)
    assert by_head.shape == (len(layers), atoms[0].keys[0].shape[0], 3, 20)


def test_a_look_ends_with_the_last_layer_of_interest_and_leaves_the_model_as_it_was(model, tiny):
    document, ids, reached = tiny.tokens(20, seed=1), tiny.tokens(1, 9), []
    whole = capture(model, "d", tuple(document.tolist()), ("content",) * 20).as_states()
    bare = logits(model, ids)
    hooks = [
        module.register_forward_pre_hook(lambda *_, index=layer.index: reached.append(index))
        for module, layer in attention_modules(model).items()
    ]
    attention_to(model, whole, ids, torch.ones(1, 1), (1,))
    for hook in hooks:
        hook.remove()
    assert reached == [0, 1]
    assert torch.equal(logits(model, ids), bare)


def test_captured_atoms_carry_the_document_and_lie_behind_the_prompt(model, tiny):
    ids = tuple(tiny.tokens(12).tolist())
    types = (None, *["content"] * 10, "delimiter")
    atoms = capture(model, "tale", ids, types)
    assert (atoms.document, atoms.types) == ("tale", types)
    assert atoms.positions.tolist() == list(range(-12, 0))
    assert (
        set(atoms.keys) == set(atoms.values) == {layer.index for layer in attention_modules(model).values()}
    )
    assert not any(tensor.requires_grad for tensor in [*atoms.keys.values(), *atoms.values.values()])
    states = atoms.as_states()
    assert (states.count, states.slots) == (1, 12)
