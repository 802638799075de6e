"""The hard pool: the OFF training prompts the current memory disturbs most. It feeds `L_off` and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cedkv.evaluate import stress
from cedkv.injection.trunk import Part, Trunk
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class HardPool:
    """Indices into the OFF training prompts, hardest first, and their stress in nats when they were mined."""

    indices: tuple[int, ...]
    deltas: tuple[float, ...]


def mine(
    model: CausalLM,
    states: States,
    prompts: Trunk | Part,
    size: int,
    *,
    batch_rows: int,
    ranked: Sequence[int] | None = None,
) -> HardPool:
    """The `size` prompts with the largest stress under `states`; equal ones in their given order.

    Args:
        ranked: places of the prompts that are measured, where not all of them are.
    """
    places = range(len(prompts)) if ranked is None else sorted(ranked)
    delta = stress(model, states, prompts.take(places), batch_rows=batch_rows).delta
    order = delta.argsort(descending=True, stable=True)[:size]
    return HardPool(tuple(places[i] for i in order.tolist()), tuple(delta[order].tolist()))
