"""A small run with gates that was logged, and its memory as a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

GATED = ("phase3.mix.slot_gate=affine", "phase3.train.steps=6", "phase3.eval.off_fixed_stress.size=24")


class Logged(NamedTuple):
    """A run in its store, and what `cedkv memory export --force` makes of it."""

    uri: str
    run_id: str
    folder: Path


@pytest.fixture(scope="session")
def logged(tmp_path_factory, store_template, small_config) -> Logged:
    from cedkv.api import train
    from cedkv.api.folder import export

    home = tmp_path_factory.mktemp("logged")
    shutil.copyfile(store_template, home / "mlflow.db")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run_id = train(small_config(*GATED, f"tracking.uri={uri}"))
    export(run_id, uri, home / "memory", force=True)
    return Logged(uri, run_id, home / "memory")


@pytest.fixture(scope="session")
def loaded(small_model):
    from cedkv.models.load import load_model

    return load_model(str(small_model))
