"""Which layers attend, through which window, and what a layer scope names."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.models.layers import AttentionLayer, attention_modules, resolve_scope, uses_rope

_WINDOWS = {
    "gemma2": [6, None, 6, None],
    "gemma3_text": [6, 6, None, None],
    "mistral": [6, 6, 6, 6],
    "exaone4": [6, 6, 6, None],
    "gpt_oss": [6, None, 6, None],
}
_HYBRID = {
    **dict.fromkeys(["hidden_size", "intermediate_size"], 32),
    **dict.fromkeys(["head_dim", "linear_key_head_dim", "linear_value_head_dim", "num_hidden_layers"], 8),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["num_key_value_heads", "linear_num_key_heads", "num_experts", "num_experts_per_tok"], 2),
    **dict.fromkeys(["num_attention_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["vocab_size", "max_position_embeddings"], 67),
}


def layers_of(model) -> list[AttentionLayer]:
    return list(attention_modules(model).values())


def stack(count: int, windows: int = 0) -> list[AttentionLayer]:
    """`count` layers, the first `windows` of them with a window."""
    return [AttentionLayer(i, 8 if i < windows else None) for i in range(count)]


def test_attention_layers_are_found_in_order_with_their_windows(model, family):
    layers = layers_of(model)
    assert [layer.index for layer in layers] == list(range(model.config.num_hidden_layers))
    assert [layer.window for layer in layers] == _WINDOWS.get(family, [None] * 3)


def test_families_with_learned_absolute_positions_have_no_rotation(model, family):
    assert uses_rope(model) == (family != "gpt2")


@pytest.mark.parametrize(
    ("scope", "count", "chosen"),
    [
        ("top25", 8, (6, 7)),
        ("top25", 3, (2,)),
        ("top25", 5, (3, 4)),  # ceil(1.25)
        ("top1", 4, (3,)),
        ("top34", 3, (1, 2)),  # ceil(1.02)
        ("top100", 3, (0, 1, 2)),
        ("all", 3, (0, 1, 2)),
        ([4, 1], 5, (1, 4)),
        ((0,), 5, (0,)),
    ],
)
def test_a_scope_names_the_last_layers_or_those_it_lists(scope, count, chosen):
    assert resolve_scope(scope, stack(count)) == chosen


@given(st.integers(1, 100), st.integers(1, 200))
def test_topnn_is_the_last_ceil_of_its_share(percent, count):
    chosen = resolve_scope(f"top{percent}", stack(count))
    size = math.ceil(percent * count / 100)  # exact: the product is a whole number
    assert chosen == tuple(range(count - size, count))


def test_full_attention_names_the_layers_without_a_window(tiny):
    assert resolve_scope("full_attention", stack(8, windows=6)) == (6, 7)
    assert resolve_scope("full_attention", layers_of(tiny("gemma2"))) == (1, 3)
    with pytest.raises(UserError, match="'full_attention' names no layer of this model"):
        resolve_scope("full_attention", layers_of(tiny("mistral")))


def test_a_layer_that_does_not_attend_is_named_with_those_that_do():
    with pytest.raises(UserError, match=r"names layer 8, but attention layers are \[0, 1, 2\]"):
        resolve_scope([1, 8, 9], stack(3))


def test_a_hybrid_counts_its_attention_layers_only(tiny):
    """Qwen3-Next attends in one layer of four."""
    model = tiny.fresh("qwen3_next", **_HYBRID)
    layers = layers_of(model)
    assert [layer.index for layer in layers] == [3, 7]
    assert resolve_scope("top25", layers) == (7,)
    assert resolve_scope("all", layers) == (3, 7)
    with pytest.raises(UserError, match=r"names layer 6, but attention layers are \[3, 7\]"):
        resolve_scope([6, 7], layers)
