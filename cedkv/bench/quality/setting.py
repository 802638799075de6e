"""What all methods share on one seed: the configuration, the prepared experiment, the budget of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from cedkv.bench.quality.fit import Material
from cedkv.bench.quality.judge import bytes_of
from cedkv.bench.quality.options import Options
from cedkv.config import Config, load_config
from cedkv.memory.state import States
from cedkv.train.experiment import Experiment, prepare


@dataclass(frozen=True)
class Setting:
    """One seed of a benchmark. Nothing is loaded before it is asked for.

    `extra`: settings that win over the options' own, as `--set` takes them.
    """

    options: Options
    seed: int
    say: Callable[[str], object]
    extra: tuple[str, ...] = ()

    def config(self, phase: int = 3, *, strict_hf: bool = False) -> Config:
        """The configuration with this seed for data and training."""
        seeds = (f"data.seed={self.seed}", f"phase3.train.seed={self.seed}")
        changes = (*self.options.overrides, *seeds, *self.extra)
        return load_config(self.options.config, list(changes), phase=phase, strict_hf=strict_hf, env={})

    @cached_property
    def experiment(self) -> Experiment:
        """Prepared as Phase 2 prepares it: documents, prompts, teacher, stress set, and a bank of anchors.

        Its configuration is that of Phase 3, whose steps and batches peers get.
        """
        self.say(f"seed {self.seed}: loading, encoding, asking the teacher ...")
        return replace(prepare(self.config(2), 2), config=self.config(3))

    @cached_property
    def material(self) -> Material:
        """What peers learn from."""
        return Material(self.experiment)

    @property
    def slots(self) -> int:
        """Slots of a cedkv memory at each of its layers, sinks among them."""
        memory = self.config().phase3.memory
        return memory.slots + memory.sink_slots

    @cached_property
    def budget(self) -> int:
        """Bytes of one document's Phase 3 memory: keys, values, and a bias for every query head where slots have gates."""
        states = self.anchors
        if self.config().phase3.mix.slot_gate != "none":
            states = gated(states, self.experiment.model.config.get_text_config().num_attention_heads)
        return bytes_of(states)

    @cached_property
    def anchors(self) -> States:
        """The memory of Phase 2."""
        bank = self.experiment.bank
        return bank.states(self.config().phase3.candidate.pool_size).detach()


def gated(states: States, heads: int) -> States:
    """`states` with a bias of 0 for every query head: they compute the same, and take the room of gates."""
    shape = (states.count, heads, states.slots)
    bias = {i: torch.zeros(shape, dtype=x.dtype, device=x.device) for i, x in states.keys.items()}
    return replace(states, bias=bias)
