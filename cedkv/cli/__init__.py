"""The command line. Arguments are parsed before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cedkv.cli.commands import talks
from cedkv.cli.parser import parse
from cedkv.core.errors import UserError

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, or 2 for a user's mistake, 130 for Ctrl-C, or what the command says."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        if talks():  # every process of a launch makes the same mistake
            print(f"cedkv: error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away; the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status
