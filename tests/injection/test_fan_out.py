"""The shared forward pass for prompts × states is the plain one, row by row."""

from __future__ import annotations

import pytest
import torch

from cedkv.core.errors import UserError
from cedkv.evaluate import fan_out_error
from cedkv.injection import fan_out, inject
from cedkv.injection.fan_out import decoder_layers, product_rows
from cedkv.models.layers import attention_modules

LENGTH = 9
# As many prompts as states, as tokens, as query heads, as key heads and as numbers in a head: a tensor that is shared by
# all rows must not be taken for one with a row per prompt because its first size happens to be the same.
COUNTS = (1, 2, 3, 4, 8, LENGTH)


def upper_layers(model) -> list[int]:
    layers = [layer.index for layer in attention_modules(model).values()]
    return layers[len(layers) // 2 :]


@pytest.mark.parametrize("padding", [False, True])
def test_it_is_the_plain_pass_for_any_number_of_prompts(model, tiny, padding):
    states = 3
    memory = tiny.memory(model, states, layers=upper_layers(model))
    for prompts in COUNTS:
        ids, inputs = tiny.tokens(prompts, LENGTH, seed=prompts), {}
        if padding:
            mask = torch.ones(prompts, LENGTH, dtype=torch.long)
            mask[0, :4] = 0
            inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        rows = product_rows(prompts, states, ids.device)
        with inject(model, memory, rows):
            spread = {name: tensor.repeat_interleave(states, 0) for name, tensor in inputs.items()}
            plain = model(input_ids=ids.repeat_interleave(states, 0), use_cache=False, **spread).logits[:, -1]
        with fan_out(model, memory.layers[0], states), inject(model, memory, rows):
            shared = model(input_ids=ids, use_cache=False, **inputs).logits[:, -1]
        torch.testing.assert_close(shared, plain, atol=2e-5, rtol=0)
        assert (plain[0] - plain[1]).abs().max() > 1e-3  # the states differ


def test_rows_of_one_prompt_stand_together():
    assert product_rows(2, 3, torch.device("cpu")).tolist() == [0, 1, 2, 0, 1, 2]


def test_below_the_first_slots_a_prompt_is_computed_once(tiny):
    model = tiny("qwen3")
    memory, seen = tiny.memory(model, states=4, layers=[2]), []
    handles = [
        layer.register_forward_hook(lambda _, args, out: seen.append(out.shape[0]))
        for layer in decoder_layers(model)
    ]
    with fan_out(model, 2, 4), inject(model, memory, product_rows(5, 4, torch.device("cpu"))):
        model(input_ids=tiny.tokens(5, LENGTH), use_cache=False)
    for handle in handles:
        handle.remove()
    assert seen == [5, 5, 20]


def test_leaving_the_block_takes_the_hooks_away_even_after_an_error(tiny):
    model, ids = tiny("llama"), tiny.tokens(2, LENGTH)
    bare = model(input_ids=ids, use_cache=False).logits
    with pytest.raises(ZeroDivisionError), fan_out(model, 1, 3):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, bare)


def test_a_family_that_insists_on_its_number_of_rows_is_refused_by_name(tiny):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 67}
    model = tiny.fresh("gpt_bigcode", **sizes, bos_token_id=1, eos_token_id=2)
    memory = tiny.memory(model, states=3, layers=[1])
    with pytest.raises(UserError, match="model family 'gpt_bigcode' cannot share"):
        fan_out_error(model, memory, [(1, 2, 3), (4, 5, 6)])


def test_the_measured_difference_between_the_two_passes_is_rounding(model, tiny):
    memory = tiny.memory(model, states=3, layers=upper_layers(model))
    prompts = [tuple(tiny.tokens(n, seed=n).tolist()) for n in (3, 5, 5, 8)]
    assert fan_out_error(model, memory, prompts) < 1e-5
