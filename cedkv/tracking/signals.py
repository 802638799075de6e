"""Signals while a run is open: the first one ends the run in order, a later one cannot tear the ending apart."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_ABANDON_AFTER: Final = 3
"""Interrupts while a run is being closed, after which it is left as it is: Ctrl-C and a launcher make two at once."""

_log = logging.getLogger(__name__)
_TERMINATING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. As a ``SystemExit`` with 128 + the signal's number, it is the shell's exit status."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal_name = signal.Signals(signum).name

    def __str__(self) -> str:
        return f"terminated by {self.signal_name}"


class SignalGuard:
    """Raises `Terminated` in the main thread on SIGTERM and SIGHUP, until ``hold``; then only remembers.

    Launchers send more than one signal (Ctrl-C reaches the whole process group and the launcher passes it on), so
    the ones that arrive while a run is being closed are kept and handed back by ``restore``; the third Ctrl-C gets
    through, for a store that hangs. A signal that is set to be ignored (``nohup``) stays ignored, and away from the
    main thread nothing is installed at all.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._holding = False
        self._held: BaseException | None = None
        self._interrupts = 0
        self._doing = ""

    def install(self) -> None:
        """Take over SIGTERM and SIGHUP; SIGINT keeps its handler, which raises ``KeyboardInterrupt``."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in _TERMINATING:
            self._take(signum, self._terminate)
        interrupt = signal.getsignal(signal.SIGINT)
        if interrupt is signal.default_int_handler:  # someone's own handler knows better
            self._take(signal.SIGINT, self._interrupt)

    @property
    def waiting(self) -> bool:
        """Whether a signal is held back."""
        return self._held is not None

    def hold(self, doing: str = "finishing the log") -> None:
        """From now on remember signals instead of raising; `doing` is what an interrupt is told to wait for."""
        self._interrupts, self._doing = 0, doing
        self._holding = True

    def release(self) -> None:
        """Raise again; raise now what arrived since ``hold``."""
        self._holding = False
        held, self._held = self._held, None
        if held is not None:
            raise held

    def restore(self) -> BaseException | None:
        """Put the former handlers back; return what was held back, for the caller to raise."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
        held, self._held = self._held, None
        return held

    def _take(self, signum: int, handler: Callable[[int, FrameType | None], None]) -> None:
        before = signal.getsignal(signum)
        if before is None or before is signal.SIG_IGN:  # None: installed from C, cannot be put back
            return
        self._before[signum] = before
        signal.signal(signum, handler)

    def _terminate(self, signum: int, _frame: FrameType | None) -> None:
        self._raise(Terminated(signum))

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._holding and self._interrupts >= _ABANDON_AFTER:
            raise KeyboardInterrupt
        if self._holding:
            _log.warning("%s; press Ctrl-C again (%d in all) to abandon it", self._doing, _ABANDON_AFTER)
        self._raise(KeyboardInterrupt())

    def _raise(self, error: BaseException) -> None:
        if not self._holding:
            raise error
        self._held = self._held or error


class Interruptible:
    """Something that signals end in order: they are taken over while it is open, and may wait for a step to be done."""

    def __init__(self) -> None:
        self._guard = SignalGuard()

    def hold_signals(self) -> None:
        """Until `release_signals`, signals wait: a step is never torn apart. The third Ctrl-C does not."""
        self._guard.hold("finishing the step")

    @property
    def interrupted(self) -> bool:
        """Whether a signal waits."""
        return self._guard.waiting

    def release_signals(self) -> None:
        """Raise what waits, and from now on at once."""
        self._guard.release()
