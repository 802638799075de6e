"""Which memory a run ends with: of the eval ticks at which the constraint held, the one with the lowest ON loss.

The ON loss is that of a fixed sample of ON *training* prompts: the prompts that a gate reads choose nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cedkv.data.batching import every_nth
from cedkv.memory.bank import MemoryBank
from cedkv.train.experiment import Experiment
from cedkv.train.step import on_loss

SAMPLE = 1024
"""ON training prompts, at most, whose loss is measured at eval ticks."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A memory at an eval tick: its `k` and its parameters, the p99 and the ON loss it was measured with, in nats."""

    step: int
    k: int
    p99: float
    on_loss: float
    parameters: dict[str, Tensor]


class Keeper:
    """Remembers the best feasible memory of a run: p99 at most `limit`, then the lower ON loss, of equals the later one."""

    def __init__(self, bank: MemoryBank, limit: float) -> None:
        self._bank, self._limit = bank, limit
        self.best: Kept | None = None

    def offer(self, step: int, k: int, p99: float, on_loss: float) -> None:
        """The bank as it is, measured at `step`. What is not a number proves nothing."""
        if not (p99 <= self._limit and math.isfinite(on_loss)):
            return
        if self.best is None or on_loss <= self.best.on_loss:
            parameters = {name: p.detach().clone() for name, p in self._bank.named_parameters()}
            self.best = Kept(step, k, p99, on_loss, parameters)

    def restore(self) -> Kept | None:
        """Put the best feasible memory back into the bank; None where there was none."""
        if self.best is not None:
            with torch.no_grad():
                for name, parameter in self._bank.named_parameters():
                    parameter.copy_(self.best.parameters[name])
        return self.best


@torch.no_grad()
def fixed_on_loss(
    experiment: Experiment, bank: MemoryBank, k: int, kind: Literal["kl", "answer_nll"]
) -> float:
    """The ON loss of at most `SAMPLE` ON training prompts, every n-th of them: the same ones at every tick."""
    chosen = every_nth(range(len(experiment.encoded.on_train)), SAMPLE)
    batch = [experiment.encoded.on_train[i] for i in chosen]
    teacher = [experiment.teacher_train[i] for i in chosen]
    loss, _ = on_loss(
        experiment.model,
        bank,
        k,
        batch,
        experiment.on.take(chosen),
        teacher=teacher,
        kind=kind,
        rows=experiment.config.phase3.eval.batch_rows,
    )
    return loss.item()
