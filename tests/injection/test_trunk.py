"""Passes that start at the first injected layer are the plain ones, row by row, however much they leave out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cedkv.evaluate import choose_shortcut, stress
from cedkv.injection import inject
from cedkv.injection.resume import resume
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.models.layers import attention_modules, decoder_layers

STATES = 3
# As many prompts of one length as states, tokens, query heads, key heads and numbers in a head: a tensor that is shared
# by all rows must not be taken for one with a row per prompt because its first size happens to be the same.
LENGTHS = (1, 2, 3, 3, 3, 4, 4, 9, *[8] * 8)
SOFT_CAP_OR_SINKS = ("gemma2", "gpt_oss")
ONE_SHAPE = ("gpt2",)  # its model gives the last hidden states the shape of the input again


@pytest.fixture(scope="module")
def prompts(tiny) -> list[tuple[int, ...]]:
    return [tuple(tiny.tokens(n, seed=i).tolist()) for i, n in enumerate(LENGTHS)]


def indices(model) -> list[int]:
    return [layer.index for layer in attention_modules(model).values()]


def scopes(model) -> dict[str, list[int]]:
    layers = indices(model)
    return {"upper half": layers[len(layers) // 2 :], "last": layers[-1:], "all": layers, "first": layers[:1]}


def best(model) -> Shortcut:
    family = model.config.model_type
    if family in ONE_SHAPE:
        return Shortcut.TRUNK
    return Shortcut.TAIL if family in SOFT_CAP_OR_SINKS else Shortcut.MERGE


@pytest.mark.parametrize("scope", ["upper half", "last", "all", "first"])
def test_every_shortcut_that_a_family_allows_is_the_plain_pass(model, tiny, prompts, scope):
    memory = tiny.memory(model, STATES, layers=scopes(model)[scope])
    plain = stress(model, memory, prompts, batch_rows=64, plain=True)
    assert plain.kl.max() > 1e-2
    for shortcut in (s for s in Shortcut if s <= best(model)):
        trunk = Trunk(model, prompts, memory.layers[0], shortcut=shortcut, batch_rows=2)
        for rows in (2, 64):
            found = stress(model, memory, trunk, batch_rows=rows)
            torch.testing.assert_close(found.kl, plain.kl, atol=1e-5, rtol=0)
            assert torch.equal(found.student_top, plain.student_top)
            assert torch.equal(found.base_top, plain.base_top)


def test_the_shortest_way_that_agrees_is_chosen(model, tiny, prompts):
    memory = tiny.memory(model, STATES, layers=scopes(model)["upper half"])
    shortcut, error = choose_shortcut(model, memory, prompts, 1e-5)
    assert shortcut is best(model)
    assert error <= 1e-5


def test_a_way_that_does_not_agree_is_not_taken(tiny, prompts, monkeypatch):
    """Merging with a wrong scale is found out; what remains is right."""
    from cedkv.injection import trunk

    model = tiny("llama")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    own = trunk.own_attention

    def wrong(call):
        found = own(call)
        return trunk.OwnAttention(found.query, found.out, found.lse, found.scaling * 1.1)

    monkeypatch.setattr(trunk, "own_attention", wrong)
    assert choose_shortcut(model, memory, prompts, 1e-5)[0] is Shortcut.TAIL


def test_a_family_that_allows_none_runs_whole_passes(tiny):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 67}
    model = tiny.fresh("gpt_bigcode", **sizes, bos_token_id=1, eos_token_id=2)
    memory, ids = tiny.memory(model, STATES, layers=[1]), [(1, 2, 3), (4, 5, 6)]
    shortcut, error = choose_shortcut(model, memory, ids, 1e-5)
    plain = stress(model, memory, ids, batch_rows=64, plain=True)
    trunk = Trunk(model, ids, 1, shortcut=shortcut)
    torch.testing.assert_close(stress(model, memory, trunk, batch_rows=64).kl, plain.kl, atol=1e-5, rtol=0)
    assert error <= 1e-5


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_gradients_reach_the_slots_as_in_the_plain_pass(model, tiny, keep):
    ids, layers = tiny.tokens(4, 6), scopes(model)["upper half"]
    rows = torch.tensor([2, 0, 1, 1])
    weigh = torch.randn(4, keep, model.config.vocab_size, generator=torch.Generator().manual_seed(0))

    def slots():
        memory = tiny.memory(model, STATES, layers=layers)
        for tensor in (*memory.keys.values(), *memory.values.values()):
            tensor.requires_grad_(True)
        return memory, [*memory.keys.values(), *memory.values.values()]

    memory, leaves = slots()
    with inject(model, memory, rows):
        logits = model(input_ids=ids, use_cache=False).logits[:, -keep:]
    plain = torch.autograd.grad((logits.log_softmax(-1) * weigh).sum(), leaves)
    for shortcut in (s for s in Shortcut if s <= best(model)):
        memory, leaves = slots()
        trunk = Trunk(model, [tuple(r) for r in ids.tolist()], layers[0], shortcut=shortcut, keep=[keep] * 4)
        ((_, bucket, places),) = trunk.groups(range(4), 4)
        found = resume(model, bucket, places, memory, rows, shortcut=shortcut)
        gradients = torch.autograd.grad((found * weigh).sum(), leaves)
        for one, other in zip(gradients, plain, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("shortcut", [s for s in Shortcut if s is not Shortcut.PLAIN])
def test_nothing_is_computed_twice_and_nothing_that_is_not_read(tiny, shortcut):
    """Counted at the projections: rows below, in and above the first injected layer, and positions in the last one."""
    model = tiny("qwen3")
    layers = decoder_layers(model)
    memory = tiny.memory(model, states=4, layers=[1, 2])
    ids = [tuple(row) for row in tiny.tokens(5, 7).tolist()]
    trunk = Trunk(model, ids, 1, shortcut=shortcut)
    seen: dict[str, list[int]] = {}
    watched = {
        "below": layers[0].mlp,
        "first key": layers[1].self_attn.k_proj,
        "first mlp": layers[1].mlp,
        "last key": layers[2].self_attn.k_proj,
        "last mlp": layers[2].mlp,
        "head": model.lm_head,
    }
    handles = [
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.setdefault(name, []).append(args[0].shape[:2].numel())
        )
        for name, module in watched.items()
    ]
    stress(model, memory, trunk, batch_rows=64)
    for handle in handles:
        handle.remove()
    tokens, rows = 20 * 7, 20
    tail = shortcut >= Shortcut.TAIL
    merge = shortcut >= Shortcut.MERGE
    assert "below" not in seen
    assert seen.get("first key", []) == ([] if merge else [tokens])
    assert seen["first mlp"] == [tokens]
    assert seen["last key"] == ([tokens, rows] if tail else [tokens])
    assert seen["last mlp"] == [rows if tail else tokens]
    assert seen["head"] == [rows]


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_the_model_is_restored_after_an_error_too(tiny, shortcut):
    model = tiny("gemma3_text")
    ids = tiny.tokens(2, 5)
    bare = model(input_ids=ids, use_cache=False).logits
    memory = tiny.memory(model, STATES, layers=[2, 3])
    trunk = Trunk(model, [tuple(row) for row in ids.tolist()], 2, shortcut=shortcut)
    ((_, bucket, places),) = trunk.groups(range(2), 2)

    def broken(*_):
        raise ZeroDivisionError

    handle = model.lm_head.register_forward_pre_hook(broken)
    with pytest.raises(ZeroDivisionError):
        resume(model, bucket, places, memory, torch.tensor([0, 1]), shortcut=shortcut)
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, bare)


def test_the_slots_mass_is_the_one_of_the_plain_pass(tiny):
    model = tiny("qwen3")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    ids = [tuple(row) for row in tiny.tokens(3, 6).tolist()]
    masses = []
    for shortcut in Shortcut:
        trunk = Trunk(model, ids, 1, shortcut=shortcut)
        ((_, bucket, places),) = trunk.groups(range(3), 3)
        seen: dict[int, torch.Tensor] = {}

        def look(call, seen=seen):
            seen[call.layer] = call.last_weights(1)[..., : call.slots]

        resume(model, bucket, places, memory, torch.arange(3), shortcut=shortcut, observer=look)
        masses.append(seen)
    for seen in masses:
        assert seen.keys() == {1, 2}
        for layer in seen:
            torch.testing.assert_close(seen[layer], masses[0][layer], atol=1e-6, rtol=1e-4)


def test_merging_is_attention_over_both_in_float64(tiny):
    """Against softmax over slots and prompt together, written out."""
    from cedkv.injection.attention import AttentionCall
    from cedkv.injection.trunk import own_attention

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=draw) for heads in (4, 2, 2))
    slot_key, slot_value = (torch.randn(2, 2, 3, 8, generator=draw) for _ in range(2))
    own = own_attention(AttentionCall(0, query, key, value, None, 0.4, 0))
    out, weights = own.merged(slot_key, slot_value)
    keys, values = (
        torch.cat(pair, 2).double().repeat_interleave(2, 1) for pair in ((slot_key, key), (slot_value, value))
    )
    scores = query.double() @ keys.transpose(-1, -2) * 0.4
    mask = F.pad(torch.ones(5, 5, dtype=torch.bool).tril(), (3, 0), value=True)
    wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(out.double(), wanted @ values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.double(), wanted[..., :3], atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- a sequence of prompts
def test_a_trunk_and_its_parts_are_the_prompts_they_were_made_of(tiny, prompts):
    trunk = Trunk(tiny("llama"), prompts, 1, shortcut=Shortcut.MERGE)
    assert list(trunk) == prompts
    assert trunk[2] == prompts[2]
    assert trunk[1:3] == tuple(prompts[1:3])
    part = trunk.take([5, 0, 5])
    assert list(part) == [prompts[5], prompts[0], prompts[5]]
    assert list(part.take([1, 2])) == [prompts[0], prompts[5]]
    assert part[1:] == (prompts[0], prompts[5])
    with pytest.raises(IndexError):
        part[3]


def test_a_part_is_measured_as_if_it_stood_alone(tiny, prompts):
    model = tiny("llama")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    whole = stress(model, memory, Trunk(model, prompts, 1, shortcut=Shortcut.MERGE), batch_rows=8)
    places = [9, 0, 9, 4]
    trunk = Trunk(model, prompts, 1, shortcut=Shortcut.MERGE)
    part = stress(model, memory, trunk.take(places), batch_rows=8)
    torch.testing.assert_close(part.kl, whole.kl[places], atol=1e-6, rtol=0)


def test_a_trunk_of_another_memory_is_refused(tiny, prompts):
    model = tiny("llama")
    memory = tiny.memory(model, STATES, layers=[2])
    with pytest.raises(ValueError, match="the trunk ends at layer 1, but the states enter at layer 2"):
        stress(model, memory, Trunk(model, prompts, 1, shortcut=Shortcut.TRUNK), batch_rows=8)
