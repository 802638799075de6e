"""The warning rules of the pages, held against what runs have logged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cedkv import ledger
from cedkv.report.dashboard.spec import LEVELS, Level, Page, Rule
from cedkv.report.dashboard.view import RunView

MAX_NOTE: Final = 1000
"""Characters of the note on an acknowledged warning."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule that one run breaks: since which step, the worst value, and what a person has said about it.

    `behind`: rows of the artifact that the rule names, e.g. which slots of which documents.
    """

    level: Level
    run_id: str
    run_name: str
    rule: str
    step: int | None
    value: float
    limit: float
    says: str
    note: str = ""
    behind: tuple[Mapping[str, Any], ...] = ()

    @property
    def acknowledged(self) -> bool:
        """Whether somebody has taken note."""
        return bool(self.note)


def rules_of(pages: Iterable[Page]) -> list[Rule]:
    """Every rule of the pages, the most serious first."""
    found = [rule for page in pages for rule in page.warnings]
    return sorted(found, key=lambda rule: (-LEVELS.index(rule.level), rule.name))


def alerts_of(run: RunView, rules: Sequence[Rule]) -> list[Alert]:
    """What the rules say of one run."""
    found = (_held(run, rule) for rule in rules)
    return [alert for alert in found if alert is not None]


def acknowledgement(note: str) -> str:
    """The value of the tag that keeps a note on a warning."""
    return json.dumps({"note": note[:MAX_NOTE]}, ensure_ascii=False)


def _held(run: RunView, rule: Rule) -> Alert | None:
    limit = rule.over or rule.under
    assert limit is not None, "a rule has one of over and under"
    at = run.limit(limit)
    if at is None:
        return None
    broken = [(step, value) for step, value in _values(run, rule) if _breaks(rule, value, at)]
    if not broken:
        return None
    worst = (max if rule.over else min)(value for _, value in broken)
    rows = run.rows(rule.behind) if rule.behind else None
    return Alert(
        level=rule.level,
        run_id=run.record.run_id,
        run_name=run.record.name,
        rule=rule.name,
        step=min(step for step, _ in broken),
        value=worst,
        limit=at,
        says=rule.says,
        note=_note(run.record.tags.get(ledger.ACKNOWLEDGED_PREFIX + rule.name)),
        behind=tuple(rows or ()),
    )


def _values(run: RunView, rule: Rule) -> list[tuple[int, float]]:
    series = run.history.get(rule.metric)
    if series is None:
        return []
    pairs = [(step, value) for step, value in zip(*series.points(), strict=True) if math.isfinite(value)]
    return pairs if rule.at == "any" else pairs[-1:]


def _breaks(rule: Rule, value: float, at: float) -> bool:
    if rule.reaches and math.isclose(value, at, rel_tol=1e-6):
        return True
    return value > at if rule.over else value < at


def _note(tag: str | None) -> str:
    """The note in an acknowledgement; a tag that holds anything else counts as one without words."""
    if tag is None:
        return ""
    try:
        held = json.loads(tag)
    except ValueError:
        held = None
    note = held.get("note") if isinstance(held, dict) else None
    return note if isinstance(note, str) and note.strip() else "(no note)"
