"""The one error type for a user's mistake."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend. The message states the value, the rule it breaks and the remedy.

    The command line prints it as one line and exits with status 2, never with a traceback.
    """
