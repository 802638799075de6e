"""One query beside a long cache: what it gets is what the layer's own function gives over slots and cache in one piece."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cedkv.injection import attention, inject
from cedkv.injection import decode as module
from cedkv.injection.decode import LONG, attend, can_attend, can_decode, decode
from cedkv.memory.state import LayerSlots

ROWS, HEADS, GROUPS, SIZE, VALUE, SLOTS, KEYS = 2, 4, 2, 8, 6, 3, 11


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[2]), dtype=dtype)


@pytest.mark.parametrize("bias", [None, GROUPS, HEADS])
@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_it_is_one_softmax_over_slots_and_keys(bias, kind):
    """Computed head by head, in float64."""
    query, key, value = (
        drawn(ROWS, HEADS, 1, SIZE),
        drawn(ROWS, GROUPS, KEYS, SIZE),
        drawn(ROWS, GROUPS, KEYS, VALUE),
    )
    slots = LayerSlots(
        drawn(ROWS, GROUPS, SLOTS, SIZE),
        drawn(ROWS, GROUPS, SLOTS, VALUE),
        None if bias is None else torch.linspace(-1, 1, ROWS * bias * SLOTS).view(ROWS, bias, SLOTS).double(),
    )
    seen = torch.ones(ROWS, 1, 1, KEYS, dtype=torch.bool)
    seen[1, ..., :4] = False
    mask = {
        "none": None,
        "bool": seen,
        "additive": torch.zeros(seen.shape).masked_fill(~seen, -1e30).double(),
    }[kind]
    found = decode(query, key, value, mask, slots, scaling=0.3)
    assert found.shape == (ROWS, 1, HEADS, VALUE)
    for b in range(ROWS):
        for h in range(HEADS):
            g = h * GROUPS // HEADS
            kept = slice(4, None) if kind != "none" and b == 1 else slice(None)
            keys = torch.cat([slots.key[b, g], key[b, g, kept]])
            values = torch.cat([slots.value[b, g], value[b, g, kept]])
            scores = keys @ query[b, h, 0] * 0.3
            if slots.bias is not None:
                scores[:SLOTS] += slots.bias[b, h * bias // HEADS]
            torch.testing.assert_close(found[b, 0, h], scores.softmax(0) @ values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_without_copies_it_is_what_transformers_makes_of_copies(kind, dtype):
    """To rounding: the same numbers, read from where they are."""
    query, key, value = (
        drawn(ROWS, HEADS, 1, SIZE),
        drawn(ROWS, GROUPS, KEYS, SIZE),
        drawn(ROWS, GROUPS, KEYS, SIZE),
    )
    query, key, value = (x.to(dtype) for x in (query, key, value))
    mask = torch.linspace(-2, 2, ROWS * HEADS * KEYS).view(ROWS, HEADS, 1, KEYS).to(dtype)
    if kind == "bool":
        mask = mask > -1.5
    assert can_attend(query, mask, {"scaling": 0.3, "softcap": None})
    found = attend(query, key, value, mask, scaling=0.3)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = HEADS // GROUPS, True
    wanted, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-2)


def test_what_is_no_plain_attention_of_one_masked_token_stays_with_the_layer():
    query, mask = drawn(ROWS, HEADS, 1, SIZE), torch.ones(ROWS, 1, 1, KEYS, dtype=torch.bool)
    assert can_attend(query, mask, {"dropout": 0.0})
    assert not can_attend(query, None, {})
    assert not can_attend(query.expand(-1, -1, 2, -1), mask, {})
    assert not can_attend(query.to("meta"), mask, {})
    for name, value in (
        ("softcap", 5.0),
        ("s_aux", torch.zeros(2)),
        ("position_bias", mask),
        ("dropout", 0.1),
    ):
        assert not can_attend(query, mask, {name: value})
        assert not can_decode(query, drawn(ROWS, GROUPS, LONG, SIZE), {name: value})


@pytest.mark.parametrize("gated", [False, True])
def test_every_family_decodes_as_its_own_function_does(model, tiny, monkeypatch, gated):
    """Two steps behind a cache of padded rows, each row with its own state."""
    memory = tiny.memory(model, states=2)
    if gated:
        heads = model.config.num_attention_heads
        memory = replace(
            memory, bias={i: torch.linspace(-1, 2, 6 * heads).view(2, heads, 3) for i in memory.layers}
        )
    ids, mask = tiny.tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    how |= {"output_scores": True, "return_dict_in_generate": True, "attention_mask": mask}
    found, calls = {}, Counter()
    for name, function in (("decode", decode), ("attend", attend)):
        monkeypatch.setattr(
            f"cedkv.injection.attention.{name}",
            lambda *given, name=name, function=function, **how: (
                calls.update([name]) or function(*given, **how)
            ),
        )
    stays = {"can_decode": lambda *_: False, "can_attend": lambda *_: False}
    ways = {
        "two parts": {"can_attend": stays["can_attend"]},
        "no copies": {"can_decode": stays["can_decode"]},
        "its own": stays,
    }
    monkeypatch.setattr(module, "LONG", 1)
    for way, without in ways.items():
        with monkeypatch.context() as patch, inject(model, memory, torch.tensor([1, 0])):
            for name, never in without.items():
                patch.setattr(f"cedkv.injection.attention.{name}", never)
            found[way] = torch.stack(model.generate(ids, **how).scores)
    for way in ("two parts", "no copies"):
        torch.testing.assert_close(found[way], found["its own"], atol=2e-5, rtol=1e-4)
    capped = getattr(model.config, "attn_logit_softcapping", None) or model.config.model_type == "gpt_oss"
    # What families do to scores on their way stays theirs.
    assert calls.keys() == (set() if capped else {"decode", "attend"})


def test_the_mask_of_biased_slots_is_made_once_for_many_tokens(tiny, monkeypatch):
    """With room for three tokens more each time it is made; for both of two batches in one block. Bit for bit the same."""
    model = tiny("qwen3")
    memory = tiny.memory(model, states=1, layers=(1, 2))
    memory = replace(memory, bias={i: torch.linspace(-1, 2, 12).view(1, 4, 3) for i in memory.layers})
    monkeypatch.setattr(attention, "SPARE", 3)
    made, wide = [], attention.with_bias
    monkeypatch.setattr(attention, "with_bias", lambda *given: made.append(given[0]) or wide(*given))
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 10}
    how |= {"output_scores": True, "return_dict_in_generate": True}

    def scores(spare: bool) -> list[torch.Tensor]:
        if not spare:
            monkeypatch.setattr(
                attention, "_biased", lambda _, bias, mask, q, keys: wide(mask, bias, 4, keys, q.dtype)
            )
        with inject(model, memory):
            return [torch.stack(model.generate(tiny.tokens(rows, 9), **how).scores) for rows in (2, 1)]

    found = scores(spare=True)
    assert sum(mask is None for mask in made) == 2 * 2 * 3  # batches, layers, and nine tokens by (3 + 1)
    for one, other in zip(found, scores(spare=False), strict=True):
        assert torch.equal(one, other)


def test_a_mask_made_in_inference_mode_is_in_no_graph(tiny):
    """One token generated, then one that is differentiated, in one block."""
    model = tiny("qwen3")
    memory = tiny.memory(model, states=1, layers=(1, 2))
    memory = replace(memory, bias={i: torch.zeros(1, 4, 3) for i in memory.layers})
    embedded = torch.randn(1, 1, 32, requires_grad=True)
    with inject(model, memory):
        with torch.inference_mode():
            model(input_ids=tiny.tokens(1, 1))
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
