"""Multiply-adds counted by torch as they happen: the check of the count that is read from the modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cedkv.bench.macs import whole
from cedkv.bench.peers import log_probs
from cedkv.bench.rows import Agreement
from cedkv.injection import inject
from cedkv.injection.tree import Ids
from cedkv.memory.state import States
from cedkv.models.types import CausalLM

LINEAR = ("mm", "addmm")


def counted(run: Callable[[], object], kinds: tuple[str, ...] = LINEAR) -> int:
    """Multiply-adds of the operations `kinds` while `run` runs: by default of products with weights."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    found = counter.get_flop_counts()["Global"]
    return sum(flops for operation, flops in found.items() if str(operation).split(".")[-1] in kinds) // 2


def check_count(model: CausalLM, states: States, prompt: Ids) -> Agreement:
    """A plain pass over one prompt: the count of its products, relative to what torch counts."""
    # Twice: one row alone may go as a matrix-vector product, which is counted as something else.
    ids = torch.tensor([prompt, prompt], device=model.device)
    one = states.select(torch.zeros(1, dtype=torch.long, device=model.device))

    def run() -> None:
        with inject(model, one):
            log_probs(model, ids)

    seen, said = counted(run) // len(ids), whole(model, one, len(prompt)).linear
    return Agreement("torch's FlopCounterMode, plain pass", abs(said - seen) / seen, 0.0)
