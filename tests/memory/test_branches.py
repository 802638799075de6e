"""Scopes and modes are branches of the computation: each of them changes the logits of a real model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cedkv.injection import inject


@pytest.fixture(params=["qwen3", "gemma3_text", "gpt_neox"])
def lm(tiny, request):
    return tiny(request.param)


def logits(tiny, lm, *, k: int = 4, **settings) -> Tensor:
    """Logits with the first documents' slots, their mixtures stirred by numbers that depend on place alone."""
    bank = tiny.bank(lm, **settings)
    with torch.no_grad():
        n, layer, head, s, j = torch.meshgrid(*map(torch.arange, bank.logits.shape), indexing="ij")
        bank.logits.copy_(2 * torch.sin(1.0 + n + 5 * layer + 3 * head + 2 * s + 7 * j))
    with inject(lm, bank.states(k), torch.tensor([0, 1, 2])), torch.no_grad():
        return lm(input_ids=tiny.tokens(3, 8), use_cache=False).logits


def differ(one: Tensor, two: Tensor) -> bool:
    """In every row, by far more than rounding."""
    return bool(((one - two).abs().amax((1, 2)) > 1e-3).all())


def top(lm, count: int) -> tuple[int, ...]:
    return tuple(range(lm.config.num_hidden_layers))[-count:]


def test_the_mixture_scope_does(tiny, lm):
    injection = {"injection": top(lm, 2)}
    narrow, wide = logits(tiny, lm, mixture=top(lm, 1), **injection), logits(tiny, lm, **injection)
    assert differ(narrow, wide)


def test_the_injection_scope_does(tiny, lm):
    mixture = {"mixture": top(lm, 1)}
    narrow = logits(tiny, lm, injection=top(lm, 1), **mixture)
    wide = logits(tiny, lm, injection=top(lm, 2), **mixture)
    assert differ(narrow, wide)


@pytest.mark.parametrize(("one", "two"), [("anchor", "v_only"), ("v_only", "kv"), ("anchor", "kv")])
def test_the_mix_mode_does(tiny, lm, one, two):
    assert differ(logits(tiny, lm, mode=one), logits(tiny, lm, mode=two))


@pytest.mark.parametrize(("one", "two"), [("shared", "layer"), ("layer", "head"), ("shared", "head")])
def test_sharing_does(tiny, lm, one, two):
    assert differ(logits(tiny, lm, share=one), logits(tiny, lm, share=two))


def test_sink_slots_do(tiny, lm):
    assert differ(logits(tiny, lm), logits(tiny, lm, sink_slots=2))


def test_the_number_of_slots_does(tiny, lm):
    assert differ(logits(tiny, lm), logits(tiny, lm, slots=4))


def test_top_k_does(tiny, lm):
    assert differ(logits(tiny, lm, k=8), logits(tiny, lm, k=2))


def test_the_delimiter_cap_does(tiny, lm):
    assert differ(logits(tiny, lm, mass_cap=0.05, k=8), logits(tiny, lm, mass_cap=1.0, k=8))


@pytest.mark.parametrize("changed", [{"k": 1}, {"k": 8}, {"share": "layer"}, {"mass_cap": 0.05}])
def test_what_shapes_mixtures_changes_nothing_where_nothing_is_mixed(tiny, lm, changed):
    assert torch.equal(logits(tiny, lm, mode="anchor"), logits(tiny, lm, mode="anchor", **changed))
