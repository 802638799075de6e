"""Text from a log made safe to show. Prompts, tags and run names are hostile: they come from anywhere.

JSON needs nothing from here: it is written in ASCII with every other character escaped, and keeps the text whole.
"""

from __future__ import annotations

import html
import re
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})
"""Categories that move the cursor, reorder or hide text, or that XML forbids: control, format (bidirectional overrides,
zero width), surrogates, non-characters, line and paragraph separators."""

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;", "@": "&#64;"}
_MARKDOWN = str.maketrans({**_ENTITIES, **{char: "\\" + char for char in "*_[]#~$!"}})
_AUTOLINK = re.compile(r"(://|www\.)", re.IGNORECASE)


def plain(text: str, limit: int | None = None) -> str:
    r"""``text`` on one line with everything invisible spelled out (``\n``, ``\x1b``, ``\u202e``).

    Longer than ``limit`` characters: cut, with ``…`` as the last one.
    """
    shown = "".join(_spelled(char) if unicodedata.category(char) in _HIDDEN else char for char in text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def markdown(text: str, limit: int | None = None) -> str:
    """``text`` as inline Markdown or a table cell in which nothing is markup, a link, a mention or HTML."""
    safe = plain(text, limit).translate(_MARKDOWN)
    return _AUTOLINK.sub(lambda found: found[0].replace(":", "&#58;").replace(".", "&#46;"), safe)


def markup(text: str, limit: int | None = None) -> str:
    """``text`` for HTML, XML and plotly labels (which read a subset of HTML)."""
    return html.escape(plain(text, limit))


def width(text: str) -> int:
    """Terminal columns that ``text`` (as ``plain`` gives it) takes: wide characters count twice, combining ones not."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _spelled(char: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    if short:
        return short
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
