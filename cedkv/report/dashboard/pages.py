"""Where pages are, and how they are read: a YAML file each, every mistake told with its place and remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cedkv.config import yaml12
from cedkv.config.problems import RULES
from cedkv.core.errors import UserError
from cedkv.report.dashboard.spec import KINDS, Page, Rule

_FILE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")


def read_pages(folder: Path) -> tuple[Page, ...]:
    """Every page of a folder, in the order they are shown.

    Raises:
        UserError: no such folder, none in it, or one that is not a page: every mistake with its place and remedy.
    """
    files = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"{folder} holds no page (*.yaml); name a folder of dashboards with --pages, e.g. the dashboards/ of a checkout"
        )
    pages = [_page(file) for file in files]
    _refuse_twins([(page.page, file) for page, file in zip(pages, files, strict=True)], "page")
    _refuse_twins(
        [(rule.name, file) for page, file in zip(pages, files, strict=True) for rule in page.warnings],
        "warning rule",
    )
    return tuple(sorted(pages, key=lambda page: (page.order, page.page)))


def find_pages(folder: str | None, root: Path) -> Path:
    """Where the pages are: the folder asked for, else those of the project, else those that were installed."""
    if folder is not None:
        return Path(folder)
    own = root / "dashboards"
    return own if own.is_dir() else Path(sys.prefix, "share", "cedkv", "dashboards")


def _page(file: Path) -> Page:
    try:
        page = Page.model_validate(yaml12.read(file))
    except ValidationError as error:
        lines = [_sentence(detail) for detail in error.errors(include_url=False)]
        raise UserError(
            f"{file}: {lines[0]}"
            if len(lines) == 1
            else "\n  - ".join([f"{file} has {len(lines)} problems:", *lines])
        ) from None
    if not _FILE.fullmatch(file.stem):
        raise UserError(f"{file}: a page's file is its address; name it with a-z, 0-9, '_' and '-' only")
    page._slug = file.stem  # noqa: SLF001 - set once, here
    problems = [problem for place, rule in enumerate(page.warnings) for problem in _of_rule(place, rule)]
    if problems:
        raise UserError("\n  - ".join([f"{file}: {problems[0]}", *problems[1:]]))
    return page


def _of_rule(place: int, rule: Rule) -> list[str]:
    at = f"warnings[{place}] ({rule.name})"
    found = []
    if (rule.over is None) == (rule.under is None):
        found.append(f"{at}: give one of over and under")
    if "*" in rule.metric:
        found.append(f"{at}.metric = {rule.metric!r}: a rule looks at one metric; write its whole name")
    return found


def _sentence(detail: ErrorDetails) -> str:
    """Place, value and rule of one mistake."""
    place = ""
    for at, part in enumerate(detail["loc"]):
        if at == 2 and part in KINDS:  # pydantic names the branch it took
            continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{place}: unknown key; dashboards/README.md lists what is known here"
    if kind == "missing":
        return f"{place}: is missing; add it (dashboards/README.md says what it is)"
    if kind == "union_tag_not_found":
        return f"{place}.kind: is missing; a panel is one of {', '.join(KINDS)}"
    if kind == "union_tag_invalid":
        return f"{place}.kind = {context['tag']!r}: must be one of {', '.join(KINDS)}"
    rule = RULES[kind](context) if kind in RULES else detail["msg"]
    return f"{place} = {str(detail['input'])[:80]!r}: {rule}"


def _refuse_twins(named: Sequence[tuple[str, Path]], what: str) -> None:
    seen: dict[str, Path] = {}
    for name, file in named:
        if name in seen:
            raise UserError(f"{file}: the {what} {name!r} stands in {seen[name]} already; rename one of them")
        seen[name] = file
