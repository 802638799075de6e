"""Fixtures for every test folder. What only one folder needs lives in that folder's own conftest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database, made once per test session (all pytest-xdist workers share it): it takes seconds."""
    from cedkv.tracking.store import prepare_store

    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):  # a worker's own folder lies in the session's
        folder = folder.parent
    path = folder / "store-template" / "mlflow.db"
    prepare_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_uri(store_template: Path, tmp_path: Path) -> str:
    """The URI of a fresh tracking store of the test's own, with its artifacts beside it."""
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copyfile(store_template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"
