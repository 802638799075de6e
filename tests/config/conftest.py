from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cedkv.config import Config, Loaded, load
from cedkv.core.errors import UserError


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Loaded]:
    """Load a configuration from its text."""

    def run(text: str, *overrides: str, env: dict[str, str] | None = None, **flags: object) -> Loaded:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, overrides, env=env or {}, **flags)  # type: ignore[arg-type]

    return run


@pytest.fixture
def config(read: Callable[..., Loaded]) -> Callable[..., Config]:
    return lambda *args, **kwargs: read(*args, **kwargs).config


@pytest.fixture
def refused(read: Callable[..., Loaded]) -> Callable[..., str]:
    """The message that a configuration is refused with."""

    def run(text: str, *overrides: str, **flags: object) -> str:
        with pytest.raises(UserError) as error:
            read(text, *overrides, **flags)
        return str(error.value)

    return run
