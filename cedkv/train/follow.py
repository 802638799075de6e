"""What the processes of a launch do that write no log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from cedkv.core.errors import UserError
from cedkv.core.team import Team
from cedkv.tracking.signals import Interruptible

T = TypeVar("T")


class Follower(Interruptible):
    """Stands where the first process has its run: takes what is logged, keeps nothing, and holds signals back like it."""

    run_id = ""

    def __enter__(self) -> Self:
        self._guard.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held = self._guard.restore()
        if held is not None and error is None:
            raise held

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """The first process logs them."""


def together(team: Team, action: Callable[[], T]) -> T:
    """Do something in every process. Where it is a user's mistake in one of them, the first one says so and all of them end."""
    found: list[T] = []
    said = ""
    try:
        found.append(action())
    except UserError as error:
        if team.size == 1:
            raise
        said = str(error)
    told = [text.decode() for text in team.gather(said.encode())]
    if not any(told):
        return found[0]
    if not team.first:
        raise SystemExit(2)
    rank, text = next((rank, text) for rank, text in enumerate(told) if text)
    raise UserError(f"process {rank} of {team.size}: {text}" if rank else text)


def by_first(team: Team, action: Callable[[], object]) -> None:
    """Let the first process do something that the others need to have been done."""
    together(team, action if team.first else lambda: None)
