"""JSON as the log writes it: strict, canonical, and without the NaN that only Python reads back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from cedkv.core.hashing import canonical_line


def encode_json(content: Any) -> tuple[str, int]:
    """``content`` as indented JSON text with sorted keys, and how many numbers in it were not finite (``null``)."""
    plain, nonfinite = _plain(content)
    return json.dumps(plain, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n", nonfinite


def encode_lines(rows: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
    """``rows`` as canonical JSON lines, and how many numbers in them were not finite (``null``)."""
    lines, total = [], 0
    for row in rows:
        plain, nonfinite = _plain(row)
        lines.append(canonical_line(plain))
        total += nonfinite
    return "".join(line + "\n" for line in lines), total


def _plain(value: Any) -> tuple[Any, int]:
    """``value`` built from JSON's own types, with ``None`` for a number that is not finite; the count of those."""
    if value is None or isinstance(value, str | bool | int):
        return value, 0
    if isinstance(value, float):
        return (float(value), 0) if math.isfinite(value) else (None, 1)
    if isinstance(value, PurePath):
        return str(value), 0
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, (item, _) in items.items()}, sum(count for _, count in items.values())
    if isinstance(value, list | tuple):
        plain = [_plain(item) for item in value]
        return [item for item, _ in plain], sum(count for _, count in plain)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return _plain(value.tolist())
    raise TypeError(
        f"{type(value).__name__} {value!r:.80} has no JSON form; pass numbers, text, lists and mappings"
    )
