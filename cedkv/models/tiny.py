"""The embedded model: its architecture, its tokenizer and where it lies.

Eight Gemma 3 layers: six with a sliding window of eight tokens, then two with global attention. What lies further back
than the stacked windows reach (6 · 7 = 42 tokens) can only be recalled by the top two layers, the ones that `top25`
injects into.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel, PreTrainedTokenizerFast

from cedkv.models.quiet import quiet

EMBEDDED = Path(__file__).parent / "embedded"
SLIDING_WINDOW = 8
LOCAL_LAYERS, GLOBAL_LAYERS = 6, 2
LOCAL_REACH = LOCAL_LAYERS * (SLIDING_WINDOW - 1)
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Every word of `texts` one token, every other text by its bytes (no unknown token is ever needed)."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [(token, 0.0) for token in (PAD, BOS, EOS)]
    vocabulary += [(byte, -20.0) for byte in alphabet] + [
        (word, -1.0) for word in words if word not in alphabet
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=None))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def build_config(vocab_size: int) -> Gemma3TextConfig:
    """The architecture, for a vocabulary of at least `vocab_size` (rounded up to a multiple of 64)."""
    return Gemma3TextConfig(
        vocab_size=-(-vocab_size // 64) * 64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=LOCAL_LAYERS + GLOBAL_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=1024,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention"] * LOCAL_LAYERS + ["full_attention"] * GLOBAL_LAYERS,
        rope_parameters={
            # Far below one turn over the context in most dimensions: content decides, not distance.
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="float32",
    )


def build_model(vocab_size: int) -> Gemma3ForCausalLM:
    """Fresh weights. Every block starts at a tenth of its size, so that the residual stream begins as the embedding."""
    model = Gemma3ForCausalLM(build_config(vocab_size))
    for name, parameter in model.named_parameters():
        if ".post_" in name:  # Gemma's norms scale by 1 + weight
            torch.nn.init.constant_(parameter, -0.9)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both to `folder`, as `load_model` reads them."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
