"""Warns where the mixture of a slot, or of a whole state, comes near the cap on delimiters.

A mixture that leans on delimiters reads where a sentence ends instead of what it says; the cap hides that it would like to
lean further. The mass is that after the cap, so a slot that is held by the cap stands exactly at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cedkv import ledger


class DelimiterWatch:
    """Follows the delimiter mass step by step; `changes` holds a row whenever one comes near the cap or leaves it again.

    Args:
        cap: largest delimiter mass of a slot.
        ratio: share of the cap from which on it counts as near.
        documents: ids of the states.
        warn: called with one line when, after none, some slot or state is near.
    """

    def __init__(
        self, cap: float, ratio: float, documents: Sequence[str], warn: Callable[[str], None]
    ) -> None:
        self._cap, self._limit, self._documents, self._warn = cap, ratio * cap, documents, warn
        self.near: set[tuple[str, int | None]] = set()
        self.first_step: int | None = None
        self.changes: list[dict[str, Any]] = []

    def observe(self, step: int, mass: Tensor) -> dict[str, float]:
        """Metrics of one step.

        Args:
            mass: [N, S] delimiter mass of every slot, after the cap.
        """
        # Rounding must not decide for a slot that the cap holds.
        limit = self._limit - 1e-6
        slots, states = mass.tolist(), mass.mean(1).tolist()
        now: dict[tuple[str, int | None], float] = {}
        for document, row, mean in zip(self._documents, slots, states, strict=True):
            now |= {(document, slot): value for slot, value in enumerate(row) if value >= limit}
            if mean >= limit:
                now[document, None] = mean
        every: dict[tuple[str, int | None], float] = {
            (document, slot): value
            for document, row, mean in zip(self._documents, slots, states, strict=True)
            for slot, value in (*enumerate(row), (None, mean))
        }
        for place in sorted(self.near ^ now.keys(), key=str):
            change = "near" if place in now else "left"
            self.changes.append(
                {
                    "step": step,
                    "document": place[0],
                    "slot": place[1],
                    "mass": every[place],
                    "cap": self._cap,
                    "limit": self._limit,
                    "change": change,
                }
            )
        if now and not self.near:
            self._say(step, now)
        self.near = set(now)
        of_states = sum(slot is None for _, slot in now)
        return {
            ledger.WARN_DELIMITER_SLOTS: float(len(now) - of_states),
            ledger.WARN_DELIMITER_STATES: float(of_states),
        }

    def _say(self, step: int, near: dict[tuple[str, int | None], float]) -> None:
        if self.first_step is None:
            self.first_step = step
        (document, slot), mass = max(near.items(), key=lambda item: item[1])
        who = f"state {document}" if slot is None else f"slot {slot} of {document}"
        more = f" and {len(near) - 1} more" if len(near) > 1 else ""
        self._warn(
            f"step {step}: {who}{more} at {mass:.3g} delimiter mass, {self._limit / self._cap:.2g} of the cap {self._cap:g} or "
            "more (phase3.candidate.delimiter): its mixture leans on delimiters"
        )
