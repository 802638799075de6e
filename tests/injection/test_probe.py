"""At load: models that slots cannot reach are refused in words, all others pass untouched."""

from __future__ import annotations

import pytest
import torch

from cedkv.core.errors import UserError
from cedkv.injection import check_routed
from cedkv.models.layers import attention_modules


def test_every_family_of_the_matrix_passes_and_is_left_as_it_was(model, tiny):
    ids = tiny.tokens(2, 7)
    bare = model(input_ids=ids, use_cache=False).logits
    check_routed(model, tuple(layer.index for layer in attention_modules(model).values()))
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, bare)


_OLD = {
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


@pytest.mark.parametrize("family", _OLD)
def test_families_that_do_not_attend_through_the_interface_are_refused_by_name(tiny, family):
    model = tiny.fresh(family, vocab_size=67, bos_token_id=1, eos_token_id=2, **_OLD[family])
    with pytest.raises(UserError, match=f"model family '{family}'"):
        check_routed(model, (0, 1))


def test_a_model_that_looks_both_ways_has_no_place_for_a_memory(tiny):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = tiny.fresh("bert", vocab_size=67, is_decoder=False, **sizes)
    with pytest.raises(
        UserError, match="model family 'bert' has no attention modules that are known to be causal"
    ):
        check_routed(model, (0, 1))


def test_layers_that_do_not_attend_are_named(tiny):
    with pytest.raises(UserError, match=r"layers \[7\] do not call"):
        check_routed(tiny("llama"), (1, 7))
