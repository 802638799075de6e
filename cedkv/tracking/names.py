"""What a tracking store accepts as a name, a path or a value: checked before anything is queued for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cedkv.core.errors import UserError

MAX_KEY: Final = 240
"""Characters of a metric, parameter or tag name; MLflow ends at 250, ten are kept for the prefix ``nonfinite/``."""
NONFINITE_PREFIX: Final = "nonfinite/"
"""Prefix of the metric that counts how often a metric or an artifact held NaN or an infinity."""
MAX_PARAM: Final = 6000
MAX_TAG: Final = 5000

_KEY = re.compile(r"[A-Za-z0-9_.\- :]+(/[A-Za-z0-9_.\- :]+)*")
_ARTIFACT = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_EXPERIMENT = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


def check_key(name: str, kind: str = "metric") -> str:
    """``name`` if every store takes it as the name of a metric, parameter or tag; else ``UserError``."""
    parts = name.split("/")
    if not _KEY.fullmatch(name) or len(name) > MAX_KEY or "." in parts or ".." in parts:
        raise UserError(
            f"{kind} name {name[:300]!r} is not one that MLflow stores; it holds ASCII letters, digits, "
            f"'_', '-', '.', ':', ' ' and single '/' between parts, at most {MAX_KEY} characters: rename it"
        )
    return name


def check_artifact_path(path: str) -> str:
    """``path`` if it is a plain relative path inside a run, e.g. ``tables/on_eval.jsonl``; else ``UserError``."""
    parts = path.split("/")
    if not _ARTIFACT.fullmatch(path) or len(path) > MAX_KEY or "." in parts or ".." in parts:
        raise UserError(
            f"artifact path {path[:300]!r} is not a path inside a run; it holds ASCII letters, digits, '_', '-', "
            "'.' and single '/' between folders, no '.' or '..' folder: rename it"
        )
    return path


def is_run_id(text: str) -> bool:
    """Whether ``text`` has the form of a run id, 32 lower-case hex digits."""
    return _RUN_ID.fullmatch(text) is not None


def check_run_id(run_id: str) -> str:
    """``run_id`` if it has the form of one; else ``UserError``."""
    if not is_run_id(run_id):
        raise UserError(
            f"run id {run_id[:80]!r} is not 32 lower-case hex digits; "
            "copy it from the MLflow UI (a run's name is not its id)"
        )
    return run_id


def check_experiment(name: str) -> str:
    """``name`` if it can name an experiment: 1 to 256 characters, none a control character; else ``UserError``."""
    if not _EXPERIMENT.fullmatch(name) or name.strip() != name:
        raise UserError(
            f"experiment name {name[:300]!r} is not 1 to 256 printable characters without blanks at its ends; "
            "choose another name"
        )
    return name


def clip(text: str, limit: int) -> str:
    """``text`` as a store keeps it: no NUL, no lone surrogates, at most ``limit`` characters.

    A longer text ends in the SHA-256 of all of it and its length, so that two texts that differ still look different.
    """
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if len(clean) <= limit:
        return clean
    tail = f"... [{len(clean)} characters, sha256 {hashlib.sha256(clean.encode()).hexdigest()}]"
    return clean[: limit - len(tail)] + tail


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested ``params`` as (dotted name, text); text stays as it is, anything else becomes compact JSON.

    An empty mapping keeps its name with the value ``{}``, so that nothing of a configuration disappears.
    """
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield check_key(name, "parameter"), clip(_as_text(value), MAX_PARAM)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
