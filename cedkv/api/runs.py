"""Runs from a program: train one, judge one."""

from __future__ import annotations

import os
from pathlib import Path

from cedkv.config import Config, load_config
from cedkv.core.verdict import Verdict
from cedkv.release.verdict import verdict_on
from cedkv.tracking.reader import read_run
from cedkv.tracking.store import project_root, resolve_uri
from cedkv.train.main import run_training
from cedkv.train.publish import surroundings


def train(config: Config | str | Path, *overrides: str, phase: int = 3) -> str:
    """Train a memory (phase 3) or log the baseline (phase 2), as ``cedkv --config`` does; the id of the run.

    Args:
        config: a resolved configuration, or a file and ``overrides`` of its keys, as ``--set`` takes them.
        phase: 2 or 3.

    Raises:
        UserError: anything about the configuration, the model, the data or the store; nothing is logged then.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides, phase=phase, env=os.environ)
    return run_training(config, phase=phase)


def judge(run_id: str, tracking_uri: str | None = None) -> Verdict:
    """What the gates say of a run, from its log alone; nothing is written. ``verdict.gates.status`` decides.

    Raises:
        UserError: there is no such run, or no such store.
    """
    uri = resolve_uri(tracking_uri, os.environ, project_root(Path.cwd()))
    record = read_run(run_id, uri)
    return verdict_on(record, surroundings(record.experiment_id, uri, remember=False))
