"""The command that searches settings."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from cedkv.cli.commands import ABORTED
from cedkv.cli.judge import DEFAULT_EXPERIMENT
from cedkv.core.errors import UserError

NOTHING_KEPT = 10
"""Status of a study in which no configuration kept every constraint: as a gate that fails."""


def tune(arguments: argparse.Namespace) -> int:
    """Work on a study until its budget is spent; print what it found, and write the best configuration."""
    if find_spec("optuna") is None:
        raise UserError("cedkv tune needs optuna: pip install 'cedkv[tune]'")
    from cedkv.tracking.store import local_home, project_root, resolve_uri
    from cedkv.tuner.runs import Scale
    from cedkv.tuner.spec import check_space, read_spec

    spec_file = Path(arguments.space)
    spec = read_spec(spec_file)
    files = [Path(arguments.config), *map(Path, arguments.then)]
    uri = resolve_uri(arguments.tracking_uri, os.environ, project_root(Path.cwd()))
    scales = tuple(
        Scale(
            file,
            tuple(arguments.overrides),
            arguments.phase3_strict_hf,
            uri,
            arguments.experiment or f"{DEFAULT_EXPERIMENT}-tune",
        )
        for file in files
    )
    currents = [check_space(spec, scale.config({}), scale.config) for scale in scales]
    name = arguments.study or f"{files[0].stem} {spec_file.stem}"
    out = Path(arguments.out or f"build/tune/{name.replace(' ', '-').replace('/', '-')}.yaml")

    from cedkv.tracking.backend import TrackingError
    from cedkv.train.launch import stand_alone
    from cedkv.tuner import studies
    from cedkv.tuner.worker import Plan, Worker

    stand_alone(os.environ)
    studies.quiet()
    budget = studies.Budget(
        arguments.trials,
        arguments.patience,
        None if arguments.minutes is None else time.monotonic() + 60.0 * arguments.minutes,
    )
    plan = Plan(
        name,
        spec,
        spec_file.read_text(),
        scales,
        currents[0],
        budget,
        keep=arguments.keep,
        confirm_seeds=arguments.seeds,
    )
    storage = studies.open_storage(arguments.storage or f"sqlite:///{local_home(uri) / 'tune.db'}")
    try:
        found = Worker(plan, storage, _say).work()
    except TrackingError as failed:
        print(f"cedkv: error: {failed}", file=sys.stderr)
        return ABORTED
    print(f"study {name!r}, run {found.run_id}: {found.why}\n\n{found.table}")
    if found.best is None:
        print("no configuration kept every constraint: the table shows by which the best ones fail")
        return NOTHING_KEPT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(found.best)
    print(f"best configuration: {out}")
    return 0


def _say(message: str) -> None:
    print(f"cedkv: {message}", file=sys.stderr, flush=True)
