"""Every key of a configuration, as a list: for the reference in configs/README.md and for helpful errors.

``python -m cedkv.config configs/README.md`` writes the reference between its two marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from cedkv.config.schema import json_schema

START: Final = "<!-- keys -->\n"
END: Final = "<!-- /keys -->"
SECTIONS: Final = ("", "model", "data", "tracking", "phase3")


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``default`` is None for a key without one (required, or following another key)."""

    path: str
    allowed: str
    default: str | None
    meaning: str


@cache
def keys() -> tuple[Key, ...]:
    """Every key, in the order of the schema."""
    schema = json_schema()
    found: dict[str, Key] = {}
    for key in _walk("", schema, schema["$defs"]):
        found.setdefault(key.path, key)  # branches share keys
    return tuple(found.values())


def table(section: str) -> str:
    """The keys under ``section`` as a Markdown table, paths relative to it; of ``""``, the keys in no section."""
    rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key in keys():
        name = key.path.removeprefix(f"{section}.") if section else key.path
        if (name == key.path) == bool(section) or (not section and "." in name):
            continue
        default = "" if key.default is None else f"`{key.default}`"
        cells = (f"`{name}`", key.allowed, default, key.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def refreshed(page: str) -> str:
    """``page`` with the tables of all keys between its marks. ``ValueError`` where a mark is missing."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page lacks {START.strip()!r} or {END!r}; put both on lines of their own")
    parts = [f"### `{name}`\n\n{table(name)}\n" if name else f"{table(name)}\n" for name in SECTIONS]
    return before + start + "\n".join(["", *parts]) + "\n" + end + after


def shown(value: Any) -> str:
    """A value as a configuration would write it, on one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _walk(path: str, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Key]:
    node = _resolved(node, definitions)
    branches = node.get("oneOf") or ([node] if "properties" in node else [])
    if not branches:
        default = shown(node["default"]) if "default" in node else None
        yield Key(path, allowed(node), default, " ".join(node.get("description", "").split()))
    choices = [_resolved(branch, definitions)["properties"] for branch in branches]
    if "discriminator" in node:
        yield _discriminator(path, node["discriminator"], choices)
    for properties in choices:
        for name, child in properties.items():
            yield from _walk(f"{path}.{name}" if path else name, child, definitions)


def _discriminator(path: str, node: Mapping[str, Any], choices: list[Mapping[str, Any]]) -> Key:
    """The key that chooses between branches; its default is the first branch."""
    child = choices[0][node["propertyName"]]
    choice = allowed({"enum": list(node["mapping"])})
    return Key(f"{path}.{node['propertyName']}", choice, shown(child["default"]), child["description"])


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = node.get("$ref")
    return node if reference is None else definitions[reference.rpartition("/")[2]]


def allowed(node: Mapping[str, Any]) -> str:
    """What a node of a JSON Schema takes, in words."""
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum") or [node["const"]])
    if "anyOf" in node:
        return " or ".join(allowed(choice) for choice in node["anyOf"])
    kind = str(node.get("type"))
    if kind == "array":
        return f"list of: {allowed(node['items'])}"
    if "pattern" in node:
        return f"text matching `{node['pattern']}`"
    names = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "null": "`null`"}
    return f"{names.get(kind, kind)} {_bounds(node)}".strip()


def _bounds(node: Mapping[str, Any]) -> str:
    if "minimum" in node and "maximum" in node:
        return f"{node['minimum']:.12g} to {node['maximum']:.12g}"
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return " and ".join(f"{sign} {node[name]:.12g}" for name, sign in signs if name in node)
