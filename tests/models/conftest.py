"""Checkpoints on disk, as users have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cedkv.models.tiny import build_tokenizer


class Checkpoint:
    """A folder with config.json, model.safetensors and a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """What goes into `model.name_or_path`."""
        return str(self.folder)

    def change_config(self, **changes: Any) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, written once per session."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family) / "model"
            tiny(family).save_pretrained(folders[family])
            build_tokenizer(["Some words to read."]).save_pretrained(folders[family])
        return folders[family]

    return save


@pytest.fixture
def checkpoint(saved, tmp_path) -> Callable[[str], Checkpoint]:
    """A copy of a family's checkpoint that the test may spoil."""

    def copy(family: str = "llama") -> Checkpoint:
        return Checkpoint(shutil.copytree(saved(family), tmp_path / family))

    return copy
