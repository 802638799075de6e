"""What `cedkv bench speed` may be asked for: shapes, sections, sizes. Plain values: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

SECTIONS = ("stress", "step", "growth", "tracking", "gate")
EMBEDDED = "embedded"
DEFAULT_SHAPE = "qwen2-small"


@dataclass(frozen=True, slots=True)
class Shape:
    """A real architecture with random weights: its family and the settings of its configuration."""

    family: str
    settings: Mapping[str, Any]

    def of_layers(self, layers: int) -> Shape:
        """The same with another number of layers."""
        return replace(self, settings={**self.settings, "num_hidden_layers": layers})


def _shape(
    family: str, *, hidden: int, layers: int, heads: tuple[int, int], intermediate: int, vocab: int
) -> Shape:
    """Random weights whose attention is not uniform: scores have the standard deviation hidden · initializer_range² = 1.3.

    At the usual range of 0.02 a narrow model looks everywhere alike, and no memory changes what it says.
    """
    settings = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "vocab_size": vocab,
        "initializer_range": (1.3 / hidden) ** 0.5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family != "gpt2":
        settings |= {"num_key_value_heads": heads[1], "intermediate_size": intermediate}
    return Shape(family, MappingProxyType(settings))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "qwen2-tiny": _shape("qwen2", hidden=64, layers=4, heads=(4, 2), intermediate=256, vocab=512),
        "qwen2-small": _shape("qwen2", hidden=512, layers=8, heads=(8, 2), intermediate=2048, vocab=8192),
        "gpt2": _shape("gpt2", hidden=768, layers=12, heads=(12, 12), intermediate=3072, vocab=50257),
        "qwen2.5-0.5b": _shape(
            "qwen2", hidden=896, layers=24, heads=(14, 2), intermediate=4864, vocab=151936
        ),
        "llama-3.2-1b": _shape(
            "llama", hidden=2048, layers=16, heads=(32, 8), intermediate=8192, vocab=128256
        ),
        "qwen2.5-1.5b": _shape(
            "qwen2", hidden=1536, layers=28, heads=(12, 2), intermediate=8960, vocab=151936
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Growth:
    """The points of the growth section, and what stays fixed while one of them moves."""

    prompts: tuple[int, ...] = (32, 128, 512)
    states: tuple[int, ...] = (1, 8, 64, 256)
    layers: tuple[int, ...] = (8, 16, 32)
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    few_prompts: int = 8
    few_states: int = 4
    length: int = 16
    batch_rows: int = 16
    peer_states: int = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    `peer_states`: the states that peers, slower by far, are given; their rate per pair is what is compared.
    `beginning`: tokens that prompts are put behind where they are to begin alike.
    `step_batch`: ON prompts of a training step, and as many OFF prompts.
    `runs`: what the gate section judges, `sample` how many of these through MLflow's client, too.
    """

    prompts: int = 64
    states: int = 32
    peer_states: int = 2
    slots: int = 8
    batch_rows: int = 256
    repeats: int = 5
    beginning: int = 24
    step_batch: int = 16
    step_length: int = 24
    answer: int = 4
    growth: Growth = Growth()
    documents: int = 64
    logged_steps: int = 60
    runs: int = 200
    sample: int = 20
    square: int = 2048


_QUICK = Scale(
    prompts=32,
    states=16,
    repeats=3,
    step_batch=8,
    growth=Growth(
        prompts=(16, 64, 256),
        states=(1, 4, 16, 64),
        layers=(4, 8, 16),
        lengths=(16, 64, 256),
        length=8,
        few_prompts=4,
        few_states=2,
        batch_rows=16,
    ),
    documents=8,
    logged_steps=10,
    runs=20,
    sample=5,
    square=1024,
)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    model: str = DEFAULT_SHAPE
    device: str = "cpu"
    dtype: str = "float32"
    sections: tuple[str, ...] = SECTIONS
    quick: bool = False
    peers: bool = True
    repeats: int | None = None

    @property
    def scale(self) -> Scale:
        """The sizes this asks for. A GPU is given enough rows to fill it, the embedded model its many prompt lengths."""
        scale = _QUICK if self.quick else Scale()
        if self.device.startswith("cuda"):
            scale = replace(
                scale,
                prompts=16 * scale.prompts,
                states=64,
                peer_states=8,
                batch_rows=1024,
                square=8192,
                growth=replace(
                    scale.growth,
                    prompts=tuple(2 * n for n in scale.growth.prompts),
                    batch_rows=64,
                    few_prompts=16,
                ),
            )
        if self.model == EMBEDDED:
            scale = replace(scale, prompts=8 * scale.prompts)
        return scale if self.repeats is None else replace(scale, repeats=self.repeats)
