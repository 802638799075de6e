"""The command that searches settings."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from cedkv.cli.commands import ABORTED, talks
from cedkv.cli.judge import store
from cedkv.cli.shared import DEFAULT_EXPERIMENT
from cedkv.core.errors import UserError

NOTHING_KEPT = 10
"""Status of a study in which no configuration kept every constraint: as a gate that fails."""


def tune(arguments: argparse.Namespace) -> int:
    """Work on a study until its budget is spent; print what it found, and write the best configuration."""
    from cedkv.tracking.names import check_experiment
    from cedkv.tracking.store import local_home
    from cedkv.tuner.scale import Scale
    from cedkv.tuner.spec import check_space, read_spec

    space, files = Path(arguments.space), [Path(arguments.config), *map(Path, arguments.then)]
    spec, uri = read_spec(space), store(arguments)
    experiment = check_experiment(arguments.experiment or f"{DEFAULT_EXPERIMENT}-tune")
    scales = tuple(
        Scale(file, tuple(arguments.overrides), arguments.phase3_strict_hf, uri, experiment) for file in files
    )
    currents = [check_space(spec, scale.config({}), scale.config) for scale in scales]
    name = arguments.study or f"{files[0].stem} {space.stem}"
    out = Path(arguments.out or f"build/tune/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.yaml")
    if find_spec("optuna") is None:
        raise UserError(
            "cedkv tune needs optuna, which is not installed: pip install -c constraints.txt -e '.[tune]'"
        )

    from cedkv.tracking.backend import TrackingError
    from cedkv.train.launch import stand_alone
    from cedkv.tuner import studies
    from cedkv.tuner.worker import Plan, Worker

    stand_alone(os.environ)
    studies.quiet()
    deadline = None if arguments.minutes is None else time.monotonic() + 60.0 * arguments.minutes
    plan = Plan(
        name,
        spec,
        space.read_text(),
        scales,
        currents[0],
        studies.Budget(arguments.trials, arguments.patience, deadline),
        keep=arguments.keep,
        confirm_seeds=arguments.seeds,
    )
    storage = studies.open_storage(arguments.storage or f"sqlite:///{local_home(uri) / 'tune.db'}")
    try:
        found = Worker(plan, storage, _say).work()
    except TrackingError as failed:
        print(f"cedkv: error: {failed}", file=sys.stderr)
        return ABORTED
    if talks():
        print(f"study {name!r}, run {found.run_id}: {found.why}\n\n{found.table}")
        print(_written(found.best, out))
        print(f"look at it: cedkv dashboard --experiment {experiment}, page Study, run {found.run_id[:8]}")
    return 0 if found.best is not None else NOTHING_KEPT


def _written(best: str | None, out: Path) -> str:
    """What became of the best configuration."""
    if best is None:
        return "no configuration kept every constraint: the table shows by which the best ones fail"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(best)
    except OSError as error:
        raise UserError(
            f"the best configuration cannot be written to {str(out)!r} ({error.strerror}); it is tune/best.yaml of the study's run; "
            "name another file with --out"
        ) from None
    return f"best configuration: {out}"


def _say(message: str) -> None:
    print(f"cedkv: {message}", file=sys.stderr, flush=True)
