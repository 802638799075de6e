"""A tiny model with random weights of every causal-LM family that the installed transformers knows.

One rule for all of them: whichever of the usual size keys a configuration class has is set to a small number, and of its
layers one of each kind is kept. What does not fit a family is said in `EXCEPTIONS`, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES: Mapping[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Family (`model_type`) and the class that `AutoModelForCausalLM` makes of it."""
VOCABULARY, WINDOW = 67, 6


def _each(value: Any, keys: str) -> dict[str, Any]:
    return dict.fromkeys(keys.split(), value)


SIZES: Mapping[str, Any] = {
    **_each(VOCABULARY, "vocab_size vocab_size_per_layer_input shape_vocab_size pronunciation_vocab_size"),
    **_each(
        128, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length"
    ),
    **_each(128, "original_max_position_embeddings"),
    **_each(32, "hidden_size n_embd d_model embedding_size word_embed_proj_dim attention_hidden_size"),
    **_each(
        32,
        "hidden_size_global input_embedding_size output_embedding_size emb_dim lru_width cross_attention_hidden_size",
    ),
    **_each(48, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size d_inner"),
    **_each(48, "dim_ff dff feed_forward_size intermediate_size_mlp dense_intermediate_size"),
    **_each(16, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_each(16, "moe_shared_expert_intermediate_size shared_experts_intermediate_size"),
    **_each(2, "num_hidden_layers n_layer n_layers num_layers num_layers_per_stack num_blocks"),
    **_each(2, "decoder_layers encoder_layers num_decoder_layers num_encoder_layers"),
    **_each(4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
    **_each(4, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
    **_each(2, "num_key_value_heads num_kv_heads"),
    **_each(8, "head_dim attention_head_dim attention_head_size d_head dim_head kv_channels linear_head_dim"),
    **_each(4, "rotary_dim qk_nope_head_dim"),
    **_each(8, "qk_rope_head_dim v_head_dim index_head_dim"),
    **_each(16, "kv_lora_rank q_lora_rank o_lora_rank"),
    **_each(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_each(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k"),
    **_each(1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts"),
    **_each(1, "first_k_dense_replace num_dense_layers moe_num_shared_experts zero_expert_num"),
    **_each(2, "index_n_heads index_topk_blocks"),
    **_each(WINDOW, "index_topk index_block_size"),
    # State-space and linear-attention layers: as wide as the model itself, in heads of 8.
    **_each(1, "expand mamba_expand"),
    **_each(4, "mamba_n_heads n_mamba_heads mamba_num_heads linear_num_heads linear_num_value_heads"),
    **_each(2, "linear_num_key_heads"),
    **_each(8, "mamba_d_head mamba_headdim mamba_head_dim linear_key_head_dim linear_value_head_dim"),
    **_each(8, "mamba_d_state state_size ssm_state_size mamba_dt_rank chunk_size mamba_chunk_size"),
    **_each(1, "n_groups mamba_n_groups mamba_ngroups"),
    **_each(0.2, "initializer_range init_std"),  # attention that matters: at 0.02 it is all but uniform
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_decoder": True,  # families that can look both ways are asked to look back only
    "use_sliding_window": True,
    "max_window_layers": 1,
}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
ONLY_WHERE_SET = {
    **_each(WINDOW, "sliding_window sliding_window_size attention_window_size"),
    "attention_chunk_size": 64,
}
"""Set only where the family's default has one."""

_HYBRID = {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
_DOUBLE = {"attention_hidden_size": 64, "attention_head_dim": 16}
EXCEPTIONS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "bamba": ({"attn_layer_indices": [1]}, "its default does not attend"),
    "blt": ({"encoder_hash_byte_group_vocab": 97}, "a table of half a million byte groups"),
    "cohere_compass_text": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "its default names no rotation",
    ),
    "dbrx": ({"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}}, "as above, and nested"),
    "dots3_note": (
        _each({"adapter_out_dim": 32}, "vision_config audio_config"),
        "what sees and hears is not made, but has to fit",
    ),
    "dots3_note_text": (
        _each(4, "swa_num_attention_heads swa_num_key_value_heads swa_qk_nope_head_dim swa_qk_rope_head_dim")
        | _each(8, "swa_head_dim swa_v_head_dim")
        | _each(16, "swa_q_lora_rank swa_kv_lora_rank"),
        "layers with a window have sizes of their own",
    ),
    "falcon_h1": ({"mamba_d_ssm": 32}, "its default is for its own width"),
    "gemma3n_text": (
        {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "intermediate_size": 48}
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        "layers that share keys need others of their kind before them",
    ),
    "granitemoehybrid": (
        {"layer_types": ["linear_attention", "full_attention"]},
        "its default does not attend",
    ),
    "jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        "its default first attends in the fifth layer",
    ),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        "its default attends in all",
    ),
    "lfm2_moe": ({"layer_types": ["conv", "full_attention"]}, "its default names no layers"),
    "minimax_m3_vl_text": (
        {"layer_types": ["full_attention", "minimax_m3_sparse"]},
        "its default does not choose keys, what is published does",
    ),
    "qwen4_exp_text": (
        _each(1, "indexer_kv_heads")
        | _each(2, "indexer_n_heads indexer_compress_ratio")
        | {"indexer_head_dim": 8, "indexer_budget": 4},
        "its default has no sizes for the layers that choose keys",
    ),
    "recurrent_gemma": ({"num_hidden_layers": 3}, "it attends in every third layer"),
    "reformer": (
        {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]}
        | {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 10, "lsh_attn_chunk_length": 10},
        "positions are laid out in two dimensions",
    ),
    "xmod": ({"default_language": "en_XX"}, "it asks for the language"),
    "zamba": (_DOUBLE | _HYBRID, "it attends to twice its width"),
    "zamba2": (_DOUBLE | _HYBRID, "as above"),
    "zaya": ({"num_experts_per_tok": 1}, "it takes no other number"),
}
"""Settings that do not follow the rule, and why."""


def configuration(family: str) -> PreTrainedConfig:
    """The smallest configuration that still has a layer of each kind that the family's default has."""
    return _shrunk(CONFIG_MAPPING[family])


def miniature(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A frozen float32 model of `family` in evaluation mode.

    Raises:
        ImportError: an optional package is missing.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration(family), dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _shrunk(made: type[PreTrainedConfig]) -> PreTrainedConfig:
    exceptions, _ = EXCEPTIONS.get(made.model_type, ({}, ""))
    default = made()
    known = default.to_dict()
    settings = {key: size for key, size in SIZES.items() if key in known}
    settings |= {key: size for key, size in ONLY_WHERE_SET.items() if known.get(key) is not None}
    if "use_sliding_window" in known:
        settings["sliding_window"] = WINDOW
    if "kv_lora_rank" in known:  # latent attention has no groups
        settings["num_key_value_heads"] = SIZES["num_attention_heads"]
    nested = {key: getattr(default, key, None) for key in default.sub_configs if key not in exceptions}
    settings |= {key: _shrunk(type(value)) for key, value in nested.items() if value is not None}
    return made(**settings | _layers(known) | exceptions)


def _layers(known: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of each kind, by what the configuration lists layer by layer."""
    name = next((key for key in LAYER_COUNTS if isinstance(known.get(key), int)), None)
    listed = {key: value for key, value in known.items() if _is_listed(value, known.get(name or ""))}
    if name is None or not listed:
        return {}
    kinds = {kind: place for place, kind in reversed(list(enumerate(zip(*listed.values(), strict=True))))}
    kept = sorted(kinds.values())
    if len(kept) == 1:
        kept *= SIZES[name]
    return {name: len(kept)} | {
        key: [SIZES.get(key, value[place]) for place in kept] for key, value in listed.items()
    }


def _is_listed(value: Any, layers: Any) -> bool:
    """Whether a configuration's `value` says something of each of its layers, and not which layers are meant."""
    return isinstance(value, list) and len(value) == layers and value != list(range(len(value)))
