"""Tokenizers of the kinds that real models use, trained here on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cedkv.data.tokens import FastTokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"
TEXTS = [
    "Mara's dog is called Bruno. The harbour opens at 7, and boats must leave by noon!",
    "once upon a time there was a reddish red cat, and it said: that is the opposite of blue.",
    "The quick brown fox doesn't jump over 12.50 lazy dogs; they're asleep in the garden.",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrap(tokenizer: Tokenizer, **special: str) -> FastTokenizer:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{kind}_token": name for kind, name in special.items()}
    )


def bos(name: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, tokenizer.token_to_id(name))]
    )


@pytest.fixture(scope="session")
def byte_level() -> FastTokenizer:
    """As GPT-2 and Qwen: byte-level BPE, here with a BOS and a role marker."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<|user|>"])  # not declared special, as in some chat models
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), bos("<|bos|>", tokenizer)]
    )
    return wrap(tokenizer, bos="<|bos|>", eos="<|end|>")


@pytest.fixture(scope="session")
def trimming() -> FastTokenizer:
    """Byte-level BPE whose offsets leave out white space, with an EOS behind every text and no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.token_to_id("<|end|>"))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), end])
    return wrap(tokenizer, eos="<|end|>")


@pytest.fixture(scope="session")
def metaspace() -> FastTokenizer:
    """As Llama 2 and Gemma: spaces become ▁, one is put in front, unknown characters fall back to bytes."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106 - no password
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
    )
    trained.train_from_iterator(TEXTS, trainer)
    spec = json.loads(trained.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in BYTES]
    spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = bos("<s>", tokenizer)
    return wrap(tokenizer, bos="<s>", eos="</s>", unk="<unk>")


@pytest.fixture(scope="session")
def stories260k() -> FastTokenizer:
    """The tokenizer of a real model."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models/stories260K")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(params=["byte_level", "trimming", "metaspace", "stories260k"])
def tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    """Each kind in turn."""
    return request.getfixturevalue(request.param)
