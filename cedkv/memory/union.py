"""States made of several: a row of a batch may have one document's slots, those of several, or none.

Shapes: N states, R rows, H kv heads, Q query heads, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cedkv.memory.state import States

CLOSED = -1e4
"""The bias of a slot that nothing attends to: exp(-1e4) is 0 in every type, and half precision holds it."""


def union(states: States, rows: Sequence[Sequence[int]]) -> States:
    """R states, of which the r-th has the slots of all of ``rows[r]``, in that order.

    Rows of fewer slots are filled up with closed ones, and an empty row has nothing else: what it says differs from the bare
    model's by rounding alone. Slots of several documents stand side by side as in one softmax; nothing was trained for that.

    Raises:
        ValueError: no row at all, a state that there is not, or slots with positions of their own.
    """
    if not rows or not all(0 <= n < states.count for row in rows for n in row):
        raise ValueError(f"rows {list(rows)} must each name states 0 to {states.count - 1}")
    if states.positions is not None:
        raise ValueError("whole documents stand at one place: they cannot be joined")
    width = max(1, *(len(row) for row in rows)) * states.slots
    biased = states.bias is not None or len({len(row) for row in rows}) > 1 or not all(rows)

    def joined(x: Tensor, fill: float = 0.0) -> Tensor:
        """[N, H, S, ...] as [R, H, width, ...]."""
        parts = []
        for row in rows:
            own = torch.cat([x[n] for n in row], dim=1) if row else x[0, :, :0]
            rest = (0, 0) * (own.ndim - 2) + (0, width - own.shape[1])
            parts.append(functional.pad(own, rest, value=fill))
        return torch.stack(parts)

    def bias_of(layer: int) -> Tensor:
        key = states.keys[layer]
        open_ = key.new_zeros(key.shape[:3], dtype=torch.float32)
        return joined(open_ if states.bias is None else states.bias[layer], CLOSED)

    return States(
        {i: joined(states.keys[i]) for i in states.layers},
        {i: joined(states.values[i]) for i in states.layers},
        bias={i: bias_of(i) for i in states.layers} if biased else None,
    )
