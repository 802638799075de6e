"""Configuration: strict, frozen, resolved and hashed before anything heavy is imported."""

from __future__ import annotations

from cedkv.config.load import Loaded, dump_yaml, forces_prod, from_logged, load, load_config
from cedkv.config.schema import (
    EMBEDDED,
    Config,
    GeneratedData,
    JsonlData,
    config_hash,
    json_schema,
)

__all__ = [
    "EMBEDDED",
    "Config",
    "GeneratedData",
    "JsonlData",
    "Loaded",
    "config_hash",
    "dump_yaml",
    "forces_prod",
    "from_logged",
    "json_schema",
    "load",
    "load_config",
]
