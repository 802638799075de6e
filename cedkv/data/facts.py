"""Where in a document its stated facts are: from explicit spans, or from the words of each key and value."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from cedkv.data.records import Role, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class FactError(ValueError):
    """A fact that cannot be marked; the message says why and what to do."""


def locate(text: str, facts: Iterable[tuple[str, str]]) -> tuple[Span, ...]:
    """Spans of the (key, value) ``facts`` in ``text``, compared exactly.

    Of all occurrences, the key and the value that stand nearest to each other are marked, the first such pair where
    several are as near. Occurrences as whole words go before others.
    """
    spans: list[Span] = []
    for key, value in facts:
        left, right = _nearest(_occurrences(text, key), _occurrences(text, value), key, value)
        spans += [Span(left, left + len(key), "key"), Span(right, right + len(value), "value")]
    return merged(spans)


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted spans, overlapping ones of one role united. `FactError` where two roles overlap."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.stop)):
        last = result[-1] if result else None
        if last is None or span.start >= last.stop:
            result.append(span)
        elif span.role == last.role:
            result[-1] = Span(last.start, max(last.stop, span.stop), last.role)
        else:
            raise FactError(
                f"characters {span.start} to {min(span.stop, last.stop)} are marked both as key and as value; "
                "mark the facts by 'spans' that do not overlap"
            )
    return tuple(result)


def explicit(text: str, items: Iterable[tuple[int, int, Role]]) -> tuple[Span, ...]:
    """Checked spans given by ``(start, stop, role)`` in characters of ``text``."""
    spans = []
    for start, stop, role in items:
        if not 0 <= start < stop <= len(text):
            raise FactError(
                f"span {start} to {stop} is outside the text; give 0 <= start < stop <= {len(text)}, counted in "
                "characters, stop exclusive"
            )
        spans.append(Span(start, stop, role))
    return merged(spans)


def _occurrences(text: str, part: str) -> list[int]:
    pattern = re.escape(part)
    before = r"(?<!\w)" if re.match(r"\w", part) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", part) else ""
    whole = [match.start() for match in re.finditer(before + pattern + after, text)]
    # Scripts without spaces between words have no whole words to prefer.
    found = whole or [match.start() for match in re.finditer(pattern, text)]
    if not found:
        raise FactError(f"{part!r} does not occur in the text; spell it exactly as there, or drop the fact")
    return found


def _nearest(keys: Sequence[int], values: Sequence[int], key: str, value: str) -> tuple[int, int]:
    """The pair of starts with the smallest gap between the two texts, which must not overlap."""
    best: tuple[int, int, int] | None = None
    for left in keys:
        after = bisect_left(values, left + len(key))
        before = bisect_left(values, left - len(value) + 1) - 1
        for index in (after, before):
            if 0 <= index < len(values):
                right = values[index]
                gap = max(right - left - len(key), left - right - len(value))
                if best is None or gap < best[0]:
                    best = (gap, left, right)
    if best is None:
        raise FactError(f"key {key!r} and value {value!r} only occur inside each other; mark them by 'spans'")
    return best[1], best[2]
