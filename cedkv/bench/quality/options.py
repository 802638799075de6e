"""What `cedkv bench quality` may be asked for. Plain values: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "base": "base, no memory",
        "full_context": "full context",
        "random_slots": "random slots",
        "attention_matching": "attention matching",
        "kvpress_knorm": "kvpress Knorm",
        "kvpress_expected": "kvpress ExpectedAttention",
        "prefix": "peft prefix tuning",
        "prefix_off": "peft prefix tuning + OFF",
        "cartridge": "peft cartridge",
        "cartridge_off": "peft cartridge + OFF",
        "lora": "peft LoRA",
        "lora_off": "peft LoRA + OFF",
        "phase2": "cedkv Phase 2",
        "phase3": "cedkv Phase 3",
    }
)
"""Every method by the name that --only takes, and what tables call it."""
OURS = ("phase2", "phase3")
KVPRESS = ("kvpress_knorm", "kvpress_expected")
TRAINED = ("prefix", "prefix_off", "cartridge", "cartridge_off", "lora", "lora_off")
SEEDS = (3407, 3408, 3409)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the peers that train find their learning rate: on documents of a seed that is not reported.

    Three neighbours are tried first; where the best one is at an end, the next one beyond it, `further` times at most.
    """

    seed: int = 3400
    documents: int = 4
    stress: int = 256
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    first: tuple[tuple[str, float], ...] = (("prefix", 0.1), ("cartridge", 0.03), ("lora", 0.01))
    further: int = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line.

    Args:
        config: the configuration whose documents, prompts, bytes and steps all methods get.
        kvpress: an interpreter that has kvpress; None leaves its rows out.
        uri: the store of new runs; finished runs of the same configuration are taken from it.
        read_from: other stores where finished runs may be.
        force: run Phase 2 and Phase 3 anew.
    """

    config: str
    uri: str
    seeds: tuple[int, ...] = SEEDS
    methods: tuple[str, ...] = tuple(METHODS)
    overrides: tuple[str, ...] = ()
    kvpress: str | None = None
    read_from: tuple[str, ...] = ()
    force: bool = False
    tuning: Tuning = Tuning()
