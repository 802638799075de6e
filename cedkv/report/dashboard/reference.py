"""Every key of a page, as tables: the reference in ``dashboards/README.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cedkv.config.base import Section
from cedkv.config.reference import END, START, allowed, shown
from cedkv.report.dashboard import spec
from cedkv.report.tables import markdown_table

_COMMON = frozenset(spec.Panel.model_fields)
_PANELS = (
    spec.Number,
    spec.Line,
    spec.Area,
    spec.Bar,
    spec.Scatter,
    spec.Tail,
    spec.Heatmap,
    spec.Runs,
    spec.Parallel,
    spec.Trials,
    spec.Table,
)


def refreshed(page: str) -> str:
    """``page`` with the tables of all keys between its marks. ``ValueError`` where a mark is missing."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page lacks {START.strip()!r} or {END!r}; put both on lines of their own")
    return before + start + "\n".join(_lines()) + "\n" + end + after


def _lines() -> Iterator[str]:
    yield from _section("A page", spec.Page, frozenset())
    yield from _section("Every panel", spec.Panel, frozenset())
    for panel in _PANELS:
        kind = panel.model_json_schema()["properties"]["kind"]["const"]
        about = (panel.__doc__ or "").splitlines()[0]
        yield from _section(f"`kind: {kind}`", panel, _COMMON | {"kind"}, about)
    yield from _section("A limit", spec.Limit, frozenset())
    yield from _section("A warning rule", spec.Rule, frozenset())


def _section(title: str, model: type[Section], left_out: frozenset[str], about: str = "") -> Iterator[str]:
    schema = model.model_json_schema()
    needed = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            _takes(model, name, node),
            "" if name in needed else f"`{shown(node.get('default'))}`",
            _meaning(node),
        )
        for name, node in schema["properties"].items()
        if name not in left_out
    ]
    yield from ["", f"### {title}", ""]
    yield from [about, ""] if about else []
    yield from markdown_table(("key", "allowed", "default", "meaning"), rows)


def _takes(model: type[Section], name: str, node: Mapping[str, Any]) -> str:
    """What a key takes: by its type where that is one of the pages' own, else by its schema."""
    annotation = str(model.__annotations__.get(name, ""))
    several = annotation.startswith(("Listed[", "Annotated[Listed["))
    for word, told in (
        ("Limit", "limit"),
        ("Metric", "metric"),
        ("Value", "number or key"),
        ("Rule", "warning rule"),
        ("AnyPanel", "panel"),
    ):
        if re.search(rf"\b{word}\b", annotation):
            return f"list of {told}s" if several else told
    return allowed(node).replace("|", "\\|")


def _meaning(node: Mapping[str, Any]) -> str:
    return " ".join(node.get("description", "").split())
