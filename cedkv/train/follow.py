"""What the processes of a launch do that write no log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from cedkv.core.team import Team
from cedkv.tracking.signals import SignalGuard


class Follower:
    """Stands where the first process has its run: takes what is logged, keeps nothing, and holds signals back like it."""

    run_id = ""

    def __init__(self) -> None:
        self._guard = SignalGuard()

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

    def hold_signals(self) -> None:
        """As `RunWriter.hold_signals`."""
        self._guard.hold("finishing the step")

    @property
    def interrupted(self) -> bool:
        """Whether a signal waits."""
        return self._guard.waiting

    def release_signals(self) -> None:
        """As `RunWriter.release_signals`."""
        self._guard.release()


def by_first(team: Team, action: Callable[[], Any]) -> None:
    """Let the first process do something. Where it fails, the others leave without a word: the first one has said why."""
    failed: BaseException | None = None
    if team.first:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised below, once the others know
            failed = error
    if team.any(failed is not None):
        raise failed or SystemExit(2)
