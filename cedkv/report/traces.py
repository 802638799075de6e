"""The traces a run leaves as artifacts, as rows: one JSON object per tick or step, in a list.

==================================  ==============================================================================
artifact (``cedkv.ledger``)         keys of a row
==================================  ==============================================================================
``LOSS_CURVE``                      ``step``, ``phase3_loss``, ``phase3_loss_on``, ``phase3_loss_off``,
                                    ``phase3_loss_str``
``LAMBDA_TRACE``                    ``tick``, ``step``, ``p99_raw``, ``p99_ema``, ``delta``, ``lambda_off``
``TOPK_TRACE``                      ``step``, ``topk``
``ATOM_TYPE_MASS``                  ``step``, one key per atom type, ``delimiter_slot_max``
``WARN_TRACE``                      ``tick``, ``step``, ``value``, ``limit``, ``margin``, ``consecutive``,
                                    ``triggered``, ``verified``
==================================  ==============================================================================

Losses and p99 are in nats. A value that was not finite is ``null``. A run of Phase 2 leaves no traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Traces = Mapping[str, Sequence[Row]]


def rows_of(traces: Traces, artifact: str) -> list[Row]:
    """The rows of one artifact; empty where it is missing or holds something else."""
    found = traces.get(artifact)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list | tuple) else []


def column(rows: Sequence[Row], key: str) -> list[float | None]:
    """One value per row: a finite number, or None for anything else."""
    return [finite(row.get(key)) for row in rows]


def finite(value: Any) -> float | None:
    """``value`` as a float if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def sparse(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    last = len(rows) - 1
    return [rows[round(index * last / (most - 1))] for index in range(most)]


def changes(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows at which ``key`` takes a value other than in the row before; the first row always."""
    return [
        row
        for before, row in zip([None, *rows], rows, strict=False)
        if before is None or before.get(key) != row.get(key)
    ]
