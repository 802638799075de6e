"""The full-scale configuration, which the real steps, prompts and runs of a measurement follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.config import Config

BASE = Path(__file__).parents[2] / "configs" / "base.yaml"


def base_config(overrides: Sequence[str] = ()) -> Config:
    """configs/base.yaml of this checkout, with overrides `key=value`."""
    from cedkv.config import load_config

    if not BASE.exists():
        raise UserError(
            f"{BASE} is missing: --model embedded and the sections tracking and gate use the checkout's configurations; "
            "run from a checkout, or use another --model with --only stress,step,growth"
        )
    return load_config(BASE, list(overrides), phase=3, env={})
