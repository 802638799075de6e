"""The report on a corpus: tables for a terminal, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from cedkv.data.near import THRESHOLD
from cedkv.data.review import Review
from cedkv.report import escape
from cedkv.report.tables import aligned

_TEXT = 60  # characters of a prompt that are shown
_FAMILIES = 20


def to_table(found: Review) -> str:
    """The report for a terminal."""
    lines = [f"model {escape.plain(found.model, 80)}, context of {found.context:,} tokens", ""]
    lines += _rows(found)
    lines += _section("tokens", _lengths(found))
    lines += _section("OFF prompts by family", _families(found))
    lines += _section(
        f"near duplicates (Jaccard index of neighbouring words {THRESHOLD} or more; exact ones between parts: none)",
        _overlaps(found),
    )
    lines += _section("how prompts begin", _openings(found))
    count = len(found.findings)
    lines += ["", f"{count} finding{'s' * (count > 1)}:" if count else "nothing to mend was found"]
    lines += [f"  {finding.rule}: {escape.plain(finding.message, 600)}" for finding in found.findings]
    return "\n".join(lines) + "\n"


def to_json(found: Review) -> str:
    """The report as one JSON object, ASCII only."""
    return json.dumps({"schema": 1, "threshold": THRESHOLD, **asdict(found)}, indent=2) + "\n"


def _rows(found: Review) -> Iterator[str]:
    given = f"of {found.documents_given} in the file" if found.documents_given else ""
    rows = [("rows", "used", "", ""), ("documents", f"{found.rows['documents']:,}", given, "")]
    for part, count in found.rows.items():
        if part != "documents":
            asked = f"of {found.asked[part]:,} asked for" if part in found.asked else ""
            per_slot = (
                f"{count / found.slots:.0f} for each of {found.slots} slots" if part == "off_train" else ""
            )
            rows.append((part, f"{count:,}", asked, per_slot))
    yield from aligned(rows, (False, True, False, False))


def _lengths(found: Review) -> Sequence[str]:
    rows: list[tuple[str, ...]] = [("", "texts", "min", "median", "p95", "max")]
    rows += [
        (name, *(f"{value:,}" for value in (one.count, one.least, one.median, one.p95, one.most)))
        for name, one in found.lengths.items()
    ]
    return aligned(rows, (False, *[True] * 5))


def _families(found: Review) -> Sequence[str]:
    parts = ("off_train", "stress", "sealed")
    rows: list[tuple[str, ...]] = [("family", *parts)]
    for family, counts in list(found.families.items())[:_FAMILIES]:
        shares = (f"{counts[part]:,} {_share(counts[part], found.rows[part]):>6}" for part in parts)
        rows.append((escape.plain(family, 40), *shares))
    more = len(found.families) - _FAMILIES
    return [*aligned(rows, (False, True, True, True)), *([f"... and {more} more"] if more > 0 else [])]


def _overlaps(found: Review) -> Iterator[str]:
    rows = [("prompts of", "that repeat", "are", "")]
    for one in found.overlaps:
        other = "each other" if one.part == one.other else one.other
        example = ""
        if one.examples:
            first = one.examples[0]
            texts = (escape.plain(text, _TEXT) for text in (first.text, first.other))
            example = f"{first.similarity:.2f}  {' | '.join(texts)}"
        rows.append((one.part, other, f"{one.prompts:,} of {one.of:,}", example))
    yield from aligned(rows, (False, False, True, False))


def _openings(found: Review) -> Sequence[str]:
    rows = [(one.part, f"{one.share:.0%}", escape.plain(one.words, _TEXT)) for one in found.openings]
    return aligned(rows, (False, True, False)) if rows else []


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    body = [f"  {line}" for line in lines]
    return ["", f"{title}:", *body] if body else []


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"
