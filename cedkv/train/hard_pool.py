"""The hard pool: the OFF training prompts the current memory disturbs most. It feeds `L_off` and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cedkv.evaluate import stress
from cedkv.injection.tree import Ids
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class HardPool:
    """Indices into the OFF training prompts, hardest first, and their stress in nats when they were mined."""

    indices: tuple[int, ...]
    deltas: tuple[float, ...]


def mine(model: CausalLM, states: States, prompts: Sequence[Ids], size: int, *, batch_rows: int) -> HardPool:
    """The `size` prompts with the largest stress under `states`; equal ones in their given order."""
    delta = stress(model, states, prompts, batch_rows=batch_rows).delta
    order = delta.argsort(descending=True, stable=True)[:size]
    return HardPool(tuple(order.tolist()), tuple(delta[order].tolist()))
