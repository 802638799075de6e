"""Passes that start at the first injected layer are the plain ones, row by row, however much they leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from cedkv.evaluate import choose_shortcut, probe_of, stress
from cedkv.injection import inject
from cedkv.injection.resume import resume
from cedkv.injection.storage import Room
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, decoder_layers

STATES = 3
# As many prompts of one length as states, tokens, query heads, key heads and numbers in a head: a tensor that is shared
# by all rows must not be taken for one with a row per prompt because its first size happens to be the same.
LENGTHS = (1, 2, 3, 3, 3, 4, 4, 9, *[8] * 8)


@pytest.fixture(scope="module")
def prompts(tiny) -> list[tuple[int, ...]]:
    """Some begin alike, two are equal, one is the beginning of another."""
    fresh = [tuple(tiny.tokens(n, seed=i).tolist()) for i, n in enumerate(LENGTHS)]
    alike = [fresh[-1][:n] + tuple(tiny.tokens(3, seed=60 + n).tolist()) for n in (2, 4, 6)]
    return [*fresh, *alike, fresh[-1], fresh[-1][:5]]


def indices(model) -> list[int]:
    return [layer.index for layer in attention_modules(model).values()]


def scopes(model) -> dict[str, list[int]]:
    layers = indices(model)
    return {"upper half": layers[len(layers) // 2 :], "last": layers[-1:], "all": layers, "first": layers[:1]}


@pytest.mark.parametrize("scope", ["upper half", "last", "all", "first"])
def test_every_shortcut_that_a_family_allows_is_the_plain_pass(model, tiny, prompts, scope):
    memory = tiny.memory(model, STATES, layers=scopes(model)[scope])
    plain = stress(model, memory, prompts, batch_rows=64, plain=True)
    assert plain.kl.max() > 1e-2
    for shortcut in Shortcut:
        trunk = Trunk(model, prompts, memory.layers[0], shortcut=shortcut, batch_rows=2)
        for rows in (2, 64):
            found = stress(model, memory, trunk, batch_rows=rows)
            torch.testing.assert_close(found.kl, plain.kl, atol=1e-5, rtol=0)
            assert torch.equal(found.student_top, plain.student_top)
            assert torch.equal(found.base_top, plain.base_top)


@pytest.mark.parametrize("scope", ["upper half", "last", "all"])
def test_every_shortcut_carries_biases(model, tiny, prompts, scope):
    memory = biased(tiny.memory(model, STATES, layers=scopes(model)[scope]), model.config.num_attention_heads)
    plain = stress(model, memory, prompts, batch_rows=64, plain=True)
    without = stress(model, replace(memory, bias=None), prompts, batch_rows=64, plain=True)
    assert (plain.kl - without.kl).abs().max() > 1e-2
    for shortcut in Shortcut:
        trunk = Trunk(model, prompts, memory.layers[0], shortcut=shortcut)
        found = stress(model, memory, trunk, batch_rows=64)
        torch.testing.assert_close(found.kl, plain.kl, atol=1e-5, rtol=0)


def biased(memory: States, heads: int) -> States:
    """`memory` with random biases for each query head."""
    shape = memory.count, heads, memory.slots
    draw = torch.Generator().manual_seed(7)
    return replace(memory, bias={layer: 2 * torch.randn(shape, generator=draw) for layer in memory.layers})


def test_the_shortest_way_that_agrees_is_chosen(model, tiny, prompts):
    memory = tiny.memory(model, STATES, layers=scopes(model)["upper half"])
    shortcut, error = choose_shortcut(model, memory, prompts, 1e-5)
    assert shortcut is Shortcut.SHARE
    assert error <= 1e-5


def test_the_probe_has_rows_of_several_prompts(tiny, prompts):
    trunk = Trunk(tiny("llama"), probe_of(prompts), 1, shortcut=Shortcut.SHARE)
    assert any(
        packed.member.numel() > len(packed.nodes) for packed in trunk.product(range(len(trunk)), 64, 4)
    )


def test_a_way_that_does_not_agree_is_not_taken(tiny, prompts, monkeypatch):
    """Merging with a wrong scale is found out; what remains is right."""
    from cedkv.injection import trunk

    model = tiny("llama")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    own = trunk.own_attention

    def wrong(call):
        found = own(call)
        return replace(found, scoring=replace(found.scoring, scaling=found.scoring.scaling * 1.1))

    monkeypatch.setattr(trunk, "own_attention", wrong)
    assert choose_shortcut(model, memory, prompts, 1e-5)[0] is Shortcut.TAIL


def test_a_way_whose_rounding_differs_is_held_to_a_wider_type(tiny, prompts, monkeypatch):
    """With no tolerance but that of float64 every way is another one; a wrong one still is not taken."""
    from cedkv import evaluate

    model = tiny("qwen3")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    shortcut, error = choose_shortcut(model, memory, prompts, 1e-9)
    assert shortcut > Shortcut.PLAIN
    assert 1e-9 < error < 1e-4
    assert model.dtype is torch.float32
    right = evaluate.resume_product

    def slightly_wrong(model, trunk, *rest):
        return right(model, trunk, *rest) * (1 if trunk.shortcut is Shortcut.PLAIN else 1 + 1e-6)

    monkeypatch.setattr(evaluate, "resume_product", slightly_wrong)
    assert choose_shortcut(model, memory, prompts, 1e-9) == (Shortcut.PLAIN, 0.0)


def test_a_model_that_knows_no_wider_type_is_judged_by_the_tolerance_alone(tiny, prompts):
    """Experts multiply in float32 at most."""
    model = tiny("gpt_oss")
    memory = tiny.memory(model, STATES, layers=[2, 3])
    shortcut, error = choose_shortcut(model, memory, prompts, 0.0)
    assert error == 0.0
    assert shortcut < Shortcut.SHARE
    assert choose_shortcut(model, memory, prompts, 1e-5)[0] is Shortcut.SHARE


def test_half_precision_is_held_to_float32_and_to_its_own_rounding(tiny, prompts, monkeypatch):
    from cedkv import evaluate
    from cedkv.injection import merge

    model = tiny.fresh("llama").to(torch.bfloat16)
    memory = tiny.memory(model, STATES, layers=[1, 2])
    shortcut, error = choose_shortcut(model, memory, prompts, 1e-5)
    assert shortcut is Shortcut.SHARE
    assert 1e-4 < error < 0.5  # bfloat16 has three digits
    plain = stress(model, memory, prompts, batch_rows=64, plain=True).kl
    found = stress(model, memory, Trunk(model, prompts, 1, shortcut=shortcut), batch_rows=64).kl
    assert evaluate._difference(found, plain) == pytest.approx(error, rel=0.5)
    assert model.dtype is torch.bfloat16

    right = merge.OwnAttention.merged_with_all

    def slightly_wrong(self, key, value):  # well within what bfloat16 would hide
        return right(self, key, value * 1.01)

    monkeypatch.setattr(merge.OwnAttention, "merged_with_all", slightly_wrong)
    assert choose_shortcut(model, memory, prompts, 1e-5)[0] is Shortcut.TAIL


def test_a_trunk_in_a_file_gives_the_same_numbers(tiny, prompts):
    model = tiny("qwen3")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    one, other = (
        stress(model, memory, Trunk(model, prompts, 1, shortcut=Shortcut.SHARE, room=Room(gib)), batch_rows=8)
        for gib in (1.0, 0.0)
    )
    assert torch.equal(one.kl, other.kl)
    assert torch.equal(one.base_top, other.base_top)


def test_layers_without_attention_between_are_resumed_prompt_by_prompt(tiny):
    """A recurrent layer reads a row from left to right: a tree would be another text."""
    sizes = {
        "vocab_size": 67,
        "hidden_size": 32,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    sizes |= {"shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
    model = tiny.fresh("qwen3_next", **sizes, linear_key_head_dim=8, linear_value_head_dim=8)
    assert indices(model) == [3, 7]
    memory = tiny.memory(model, STATES, layers=[3, 7])
    start = tuple(tiny.tokens(4, seed=1).tolist())
    ids = [start + tuple(tiny.tokens(3, seed=n).tolist()) for n in range(4)]
    shortcut, _ = choose_shortcut(model, memory, ids, 1e-5)
    assert Shortcut.TRUNK <= shortcut < Shortcut.SHARE
    plain = stress(model, memory, ids, batch_rows=16, plain=True).kl
    found = stress(model, memory, Trunk(model, ids, 3, shortcut=shortcut), batch_rows=16).kl
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


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
    for shortcut in Shortcut:
        memory, leaves = slots()
        trunk = Trunk(model, [tuple(r) for r in ids.tolist()], layers[0], shortcut=shortcut, keep=[keep] * 4)
        ((_, packed),) = trunk.single(range(4))
        found = resume(model, trunk, packed, memory, rows[packed.member.view(4, keep)[:, 0]])
        found = found.log_softmax(-1)[packed.row, packed.end]
        gradients = torch.autograd.grad(
            (found * weigh[packed.member.view(4, keep)[:, 0]].flatten(0, 1)).sum(), leaves
        )
        for one, other in zip(gradients, plain, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_rows_of_any_length_and_number_of_ends_are_resumed_together(model, tiny):
    """As training does: a state of its own for every prompt, the last positions of each."""
    layers, keep = scopes(model)["upper half"], [1, 3, 2, 4, 1]
    prompts = [tuple(tiny.tokens(n, seed=n).tolist()) for n in (5, 7, 6, 4, 7)]
    memory, rows = tiny.memory(model, STATES, layers=layers), torch.tensor([2, 0, 1, 1, 0])
    trunk = Trunk(model, prompts, layers[0], shortcut=Shortcut.SHARE, keep=keep)
    seen = []
    for _, packed in trunk.single(range(5)):
        whose = torch.tensor([packed.member[packed.row == row][0] for row in range(len(packed.nodes))])
        found = resume(model, trunk, packed, memory, rows[whose]).log_softmax(-1)[packed.row, packed.end]
        base = trunk.base(packed)[packed.row, packed.end]
        for i in whose.tolist():
            with inject(model, memory.select(rows[i : i + 1])):
                plain = model(input_ids=torch.tensor([prompts[i]]), use_cache=False).logits[0, -keep[i] :]
            bare = model(input_ids=torch.tensor([prompts[i]]), use_cache=False).logits[0, -keep[i] :]
            own = packed.member == i
            torch.testing.assert_close(found[own], plain.log_softmax(-1), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(base[own], bare.log_softmax(-1), atol=1e-5, rtol=1e-4)
            seen.append(i)
    assert sorted(seen) == list(range(5))


@pytest.mark.parametrize("shortcut", [s for s in Shortcut if s is not Shortcut.PLAIN])
def test_nothing_is_computed_twice_and_nothing_that_is_not_read(tiny, shortcut):
    """Counted at the projections: rows below, in and above the first injected layer, and positions in the last one."""
    model = tiny("qwen3")
    layers = decoder_layers(model)
    memory = tiny.memory(model, states=4, layers=[1, 2])
    fresh = [tuple(row) for row in tiny.tokens(5, 7).tolist()]
    ids = [*fresh[:3], fresh[0][:4] + fresh[3][4:], fresh[0][:4] + fresh[4][4:]]  # three share four tokens
    trunk = Trunk(model, ids, 1, shortcut=shortcut)
    seen: Counter[str] = Counter()
    watched = {
        "below": layers[0].mlp,
        "first key": layers[1].self_attn.k_proj,
        "first mlp": layers[1].mlp,
        "last key": layers[2].self_attn.k_proj,
        "last query": layers[2].self_attn.q_proj,
        "last mlp": layers[2].mlp,
        "head": model.lm_head,
    }

    def count(name: str, module, out) -> None:
        if out.shape[-1] == getattr(
            module, "out_features", out.shape[-1]
        ):  # zeros that stand in are no product
            seen[name] += out.shape[:2].numel()

    handles = [
        module.register_forward_hook(lambda module, _, out, name=name: count(name, module, out))
        for name, module in watched.items()
    ]
    stress(model, memory, trunk, batch_rows=64)
    for handle in handles:
        handle.remove()
    tokens, rows = 4 * (27 if shortcut >= Shortcut.SHARE else 35), 20
    tail = shortcut >= Shortcut.TAIL
    assert seen == {
        **({} if shortcut >= Shortcut.MERGE else {"first key": tokens}),
        "first mlp": tokens,
        "last key": tokens,
        "last query": rows if tail else tokens,
        "last mlp": rows if tail else tokens,
        "head": rows,
    }


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_the_model_is_restored_after_an_error_too(tiny, shortcut):
    model = tiny("gemma3_text")
    ids = tiny.tokens(2, 5)
    bare = model(input_ids=ids, use_cache=False).logits
    memory = tiny.memory(model, STATES, layers=[2, 3])
    trunk = Trunk(model, [tuple(row) for row in ids.tolist()], 2, shortcut=shortcut)
    ((_, packed),) = trunk.single(range(2))

    def broken(*_):
        raise ZeroDivisionError

    handle = model.lm_head.register_forward_pre_hook(broken)
    with pytest.raises(ZeroDivisionError):
        resume(model, trunk, packed, memory, torch.tensor([0, 1]))
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, bare)


def test_the_slots_mass_is_the_one_of_the_plain_pass(tiny):
    model = tiny("qwen3")
    memory = tiny.memory(model, STATES, layers=[1, 2])
    prompts = [tuple(tiny.tokens(n, seed=n).tolist()) for n in (6, 6, 6)]
    masses = []
    for shortcut in Shortcut:
        trunk = Trunk(model, prompts, 1, shortcut=shortcut, keep=[1, 3, 2])
        ((_, packed),) = trunk.single(range(3))
        seen: dict[int, torch.Tensor] = {}

        def look(call, seen=seen):
            seen[call.layer] = call.last_weights(1)[..., : call.slots]

        resume(model, trunk, packed, memory, torch.arange(3), observer=look)
        masses.append(seen)
    for seen in masses:
        assert seen.keys() == {1, 2}
        for layer in seen:
            torch.testing.assert_close(seen[layer], masses[0][layer], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("biased", [0, 2, 4])  # none, one for each kv head, one for each query head
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (5.0, False), (None, True), (2.0, True)])
def test_merging_is_attention_over_both_in_float64(softcap, sinks, biased):
    """Against softmax over slots and prompt together, written out."""
    from cedkv.injection.calls import AttentionCall
    from cedkv.injection.merge import own_attention

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=draw) for heads in (4, 2, 2))
    slot_key, slot_value = (torch.randn(2, 2, 3, 8, generator=draw) for _ in range(2))
    sink = torch.randn(4, generator=draw) if sinks else None
    bias = torch.randn(2, biased, 3, generator=draw) if biased else None
    states = States({0: slot_key}, {0: slot_value}, bias=None if bias is None else {0: bias})
    own = own_attention(AttentionCall(0, query, key, value, None, 0.4, 0, softcap, sink))
    for rows in ([0, 1], [1, 0]):
        out, weights = own.merged(states.at(0, torch.tensor(rows)))
        keys, values = (
            torch.cat(pair, 2).double().repeat_interleave(2, 1)
            for pair in ((slot_key[rows], key), (slot_value[rows], value))
        )
        scores = query.double() @ keys.transpose(-1, -2) * 0.4
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if bias is not None:
            scores[..., :3] += bias[rows].double().repeat_interleave(4 // biased, 1)[:, :, None]
        mask = F.pad(torch.ones(5, 5, dtype=torch.bool).tril(), (3, 0), value=True)
        scores = scores.masked_fill(~mask, -torch.inf)
        if sink is not None:
            scores = torch.cat([scores, sink.double()[None, :, None, None].expand(2, 4, 5, 1)], -1)
        wanted = scores.softmax(-1)[..., :8]
        torch.testing.assert_close(out.transpose(1, 2).double(), wanted @ values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights.double(), wanted[..., :3], atol=1e-6, rtol=1e-5)
        everything = own.merged_with_all(states.at(0))
        torch.testing.assert_close(everything[torch.arange(2), rows], out, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- a sequence of prompts
def test_a_trunk_and_its_parts_are_the_prompts_they_were_made_of(tiny, prompts):
    trunk = Trunk(tiny("llama"), prompts, 1, shortcut=Shortcut.SHARE)
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
    whole = stress(model, memory, Trunk(model, prompts, 1, shortcut=Shortcut.SHARE), batch_rows=8)
    places = [9, 0, 9, 4]
    trunk = Trunk(model, prompts, 1, shortcut=Shortcut.SHARE)
    part = stress(model, memory, trunk.take(places), batch_rows=8)
    torch.testing.assert_close(part.kl, whole.kl[places], atol=1e-6, rtol=0)


def test_a_trunk_of_another_memory_is_refused(tiny, prompts):
    model = tiny("llama")
    memory = tiny.memory(model, STATES, layers=[2])
    with pytest.raises(ValueError, match="the trunk ends at layer 1, but the states enter at layer 2"):
        stress(model, memory, Trunk(model, prompts, 1, shortcut=Shortcut.TRUNK), batch_rows=8)
