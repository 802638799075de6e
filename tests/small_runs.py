"""Runs that take a second, on a random model: a plugin, so that every test folder may use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from cedkv.config import Config
    from cedkv.train.experiment import Experiment
    from cedkv.train.loop import Trainer
    from cedkv.train.outcome import Outcome

SMALL = (
    "phase3.layer_scope={mixture: top50, injection: top50}",
    "phase3.memory.slots=3",
    "phase3.candidate.pool_size=12",
    "phase3.train={steps: 12, on_batch: 4, off_batch: 4, topk_schedule: [12, 6, 4, 2]}",
    "phase3.loss.off.hard_pool_size=6",
    "phase3.eval={on_samples: 3, off_samples: 12, off_fixed_stress: {size: 24}, off_sealed: {size: 16}}",
    "data={facts_per_document: 3, free_sentences: 2}",
)
"""Settings over `smoke.yaml` at which a run takes a second: 3 documents of 3 facts, 24 stress prompts, 12 steps."""


def random_model(folder: Path, texts: Iterable[str]) -> Path:
    """Write a Qwen3 of fixed random weights, whose tokenizer knows the words of `texts`.

    The weights are large enough that a memory moves what the model says by 0.01 to 1 nats. Its vocabulary is padded,
    as many models' are: it can say tokens that its tokenizer does not know.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from cedkv.models import tiny

    tokenizer = tiny.build_tokenizer(texts)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny.save(Qwen3ForCausalLM(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model that knows the words of the synthetic world."""
    return random_model(tmp_path_factory.mktemp("small-model"), _words_of_the_world())


def _words_of_the_world() -> Iterator[str]:
    import random

    from cedkv.data import lexicon, skills, world

    rng = random.Random(0)
    yield from (f"{name} {name}" for name in lexicon.NAMES)
    yield from (f"{name} {name} {' '.join(values)}" for name, values in lexicon.ATTRIBUTES.items())
    for _ in range(150):
        facts = world.draw_facts(rng, 2)
        yield world.compose_document(rng, "", facts, 4).text
        yield from (world.question(rng, *f.pair, world.TRAIN_CORES + world.EVAL_CORES) for f in facts)
        yield from (item.prompt + item.answer for item in (skill(rng) for skill in skills.SKILLS.values()))
    yield world.UNKNOWN


@pytest.fixture(scope="session")
def small_config(small_model: Path) -> Callable[..., Config]:
    """Makes the configuration of a small run, given `--set` overrides and a phase."""
    from cedkv.config import load

    smoke = Path(__file__).parents[1] / "configs" / "smoke.yaml"

    def make(*overrides: str, phase: int = 3) -> Config:
        written = (f"model.name_or_path={small_model}", *SMALL, *overrides)
        return load(smoke, written, phase=phase, env={}).config

    return make


@pytest.fixture(scope="session")
def small_experiment(small_config: Callable[..., Config]) -> Callable[..., Experiment]:
    """Prepares a small run, each configuration once; every call gets a bank of its own, still untrained."""
    from cedkv.config import config_hash
    from cedkv.train.experiment import prepare

    prepared: dict[tuple[str, int], Experiment] = {}

    def make(*overrides: str, phase: int = 3) -> Experiment:
        config = small_config(*overrides, phase=phase)
        key = (config_hash(config), phase)
        if key not in prepared:
            prepared[key] = prepare(config, phase)
        return replace(prepared[key], bank=deepcopy(prepared[key].bank))

    return make


class Recorder:
    """A log that remembers what it was told: `steps` holds (step, metrics) in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append((step, dict(metrics)))

    def of(self, name: str) -> list[tuple[int, float]]:
        """Every logged value of one metric, with its step."""
        return [(step, metrics[name]) for step, metrics in self.steps if name in metrics]


class Trained(NamedTuple):
    """A finished small run: what drove it, what it told the log, how it ended."""

    trainer: Trainer
    log: Recorder
    outcome: Outcome
    warnings: list[str]


@pytest.fixture(scope="session")
def train_small(small_experiment: Callable[..., Experiment]) -> Callable[..., Trained]:
    """Trains a small run in this process, without a store, each configuration once: leave it as it is."""
    from cedkv.train.loop import Trainer

    @cache
    def train(*overrides: str) -> Trained:
        log, warnings = Recorder(), []
        trainer = Trainer(small_experiment(*overrides), log, warn=warnings.append)
        return Trained(trainer, log, trainer.run(), warnings)

    return train
