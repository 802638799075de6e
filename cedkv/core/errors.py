"""The error types that are no crash: a user's mistake, and a run that is ended on purpose."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend. The message states the value, the rule it breaks and the remedy.

    The command line prints it as one line and exits with status 2, never with a traceback.
    """


class StoppedError(Exception):
    """A run is ended before its time, on purpose. It ends KILLED, and the message is its reason."""
