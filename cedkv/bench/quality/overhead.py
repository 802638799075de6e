"""What an attached memory costs per generated token: decoding with it and without it, in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cedkv.bench.quality.identity import in_peft
from cedkv.bench.quality.setting import Setting, gated
from cedkv.bench.quality.trained import start
from cedkv.bench.timing import interleaved, synchroniser
from cedkv.injection import inject
from cedkv.models.types import CausalLM

PROMPT, TOKENS, TURNS = 32, 32, 61
"""Tokens of the prompt, which every rival has, tokens that are generated, and turns."""
FIRST, BARE = "first", "bare"
RIVAL_OF = {
    "base": BARE,
    "full_context": "full context",
    "random_slots": "slots",
    "phase2": "slots",
    "attention_matching": "slots with a bias",
    "phase3": "slots with a bias",
    **dict.fromkeys(("prefix", "prefix_off", "cartridge", "cartridge_off"), "peft prefix"),
    **dict.fromkeys(("lora", "lora_off"), "peft LoRA"),
}
"""Methods whose memories are attached in one way are one rival."""
Run = Callable[[], object]


@torch.no_grad()
def measure(setting: Setting) -> dict[str, list[float]]:
    """Of every rival, in each turn: seconds per token over those of the bare model in the same turn.

    The bare model is there twice: what the second one takes over the first is what the machine makes of nothing.
    """
    experiment = setting.experiment
    model = experiment.model
    prompt = torch.tensor([_prompt(setting)], device=model.device)
    one = setting.anchors.select(torch.zeros(1, dtype=torch.long, device=model.device))
    heads = model.config.get_text_config().num_attention_heads
    prefix, _ = in_peft(experiment, start(setting, "prefix"), "prefix", 0)
    lora, _ = in_peft(experiment, start(setting, "lora"), "lora", 0)
    document = torch.tensor([experiment.encoded.contexts[0].ids], device=model.device)
    turns: dict[str, Run] = {
        FIRST: lambda: decode(model, prompt),
        BARE: lambda: decode(model, prompt),
        "slots": lambda: decode(model, prompt, attached=inject(model, one)),
        "slots with a bias": lambda: decode(model, prompt, attached=inject(model, gated(one, heads))),
        "peft prefix": lambda: decode(prefix.base_model, prompt, cache=prefix.get_prompt(1)),  # type: ignore[operator,arg-type]
        "peft LoRA": lambda: decode(lora, prompt),  # type: ignore[arg-type]
        "full context": lambda: decode(model, torch.cat([document, prompt], dim=1)),
    }
    seconds = interleaved(turns, TURNS, synchroniser(model.device))
    bare = seconds.pop(FIRST).values
    return {
        name: [own / other for own, other in zip(spread.values, bare, strict=True)]
        for name, spread in seconds.items()
    }


def decode(
    model: CausalLM,
    prompt: torch.Tensor,
    *,
    attached: AbstractContextManager[None] | None = None,
    cache: Any = None,
) -> float:
    """Seconds that `TOKENS` greedy tokens take once the prompt has been read; the memory is attached all the while.

    On one thread of a CPU the processor's time is read, of which nobody else's work is a part.
    """
    alone = model.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    with attached or nullcontext():
        out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        started = clock()
        for _ in range(TOKENS):
            token = out.logits[:, -1:].argmax(-1)
            out = model(
                input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
            )
        out.logits[0, 0, 0].item()
        return clock() - started


def _prompt(setting: Setting) -> list[int]:
    """`PROMPT` tokens of stress prompts, one after the other."""
    tokens = [token for row in setting.experiment.encoded.stress for token in row.prompt]
    return tokens[:PROMPT]
