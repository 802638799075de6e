"""The commands that measure."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.bench.options import Options
from cedkv.cli.judge import store
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.bench.main import Outcome
    from cedkv.bench.quality.main import Outcome as QualityOutcome

DISAGREES = 1
"""Status of a measurement in which a row's results are not what an independent computation gives."""


def speed(arguments: argparse.Namespace) -> int:
    """Measure, print the tables; status 1 where a row does not agree."""
    if arguments.json is not None:
        _check_json(Path(arguments.json))
    # torch's profiler, which counts memory, reports its starts and stops on the error stream unless told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from cedkv.bench.main import measure
    from cedkv.models.allocator import keep_freed_memory

    keep_freed_memory()  # for everybody in this process, as a run does
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    options = Options(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        sections=arguments.only,
        quick=arguments.quick,
        peers=not arguments.no_peers,
        repeats=arguments.repeats,
    )
    found = measure(options, Path(arguments.out), _say)
    return _told(found, arguments.json, "row")


def quality(arguments: argparse.Namespace) -> int:
    """Compare cedkv's memories with their peers', print the tables; status 1 where a check does not hold."""
    from cedkv.bench.quality.options import METHODS
    from cedkv.bench.quality.options import Options as Asked
    from cedkv.tracking.store import check_uri

    if arguments.json is not None:
        _check_json(Path(arguments.json))
    for uri in arguments.read_from:
        check_uri(uri)
    asked = Asked(
        config=arguments.config,
        uri=store(arguments),
        seeds=arguments.seeds,
        methods=arguments.only or tuple(METHODS),
        overrides=tuple(arguments.overrides),
        kvpress=arguments.kvpress,
        read_from=tuple(arguments.read_from),
        force=arguments.force,
    )

    from cedkv.bench.quality.main import measure
    from cedkv.models.allocator import keep_freed_memory

    keep_freed_memory()  # for everybody in this process, as a run does
    found = measure(asked, Path(arguments.out), _say)
    return _told(found, arguments.json, "method")


def _told(found: Outcome | QualityOutcome, json: str | None, what: str) -> int:
    """Print an outcome, write its JSON where that was asked for; the status."""
    print(found.markdown, end="")
    if json is not None:
        Path(json).write_text(found.json)
    if not found.agrees:
        print(f"cedkv: a {what} does not agree with its independent computation", file=sys.stderr)
    return 0 if found.agrees else DISAGREES


def _check_json(path: Path) -> None:
    """Minutes before it is written."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(
            f"--json {str(path)!r} cannot be written: name a file in a folder that exists and is yours"
        )


def _say(message: str) -> None:
    print(f"cedkv: {message}", file=sys.stderr, flush=True)
