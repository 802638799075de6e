"""One query beside a long cache: what it gets is what the layer's own function gives over slots and cache in one piece."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cedkv.injection import decode as module
from cedkv.injection import inject
from cedkv.injection.decode import decode
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
    found, calls = {}, []
    monkeypatch.setattr(
        "cedkv.injection.attention.decode", lambda *given, **how: calls.append(1) or decode(*given, **how)
    )
    for longest in (1, 10**9):
        monkeypatch.setattr(module, "LONG", longest)
        with inject(model, memory, torch.tensor([1, 0])):
            found[longest] = torch.stack(model.generate(ids, **how).scores)
    torch.testing.assert_close(found[1], found[10**9], atol=2e-5, rtol=1e-4)
    capped = getattr(model.config, "attn_logit_softcapping", None) or model.config.model_type == "gpt_oss"
    assert bool(calls) is not bool(capped)  # what families do to scores on their way stays theirs
