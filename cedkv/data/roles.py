"""The atom type of every document token: what kind of word it is part of.

Judged from characters, so it works with any tokenizer: a token has the type of the characters that its offsets cover.
Delimiter characters come first: a token of nothing else is a delimiter even inside a marked fact, else marking a fact
with its full stop would lift that full stop over the delimiter cap. Then the marked facts count, then the word.
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import TYPE_CHECKING

from cedkv.ledger import CONTENT, DELIMITER, FUNCTION, KEY, NUMBER, VALUE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cedkv.data.records import Span

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any no none each every either neither both all half such
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves who whom whose which what whoever whatever
    and or but nor so yet if unless because since while when whenever where wherever as than though although until
    whether how why
    of in on at by for with without within from to into onto upon about above below over under between among through
    during before after against toward towards across along around behind beside besides beyond near off out up down
    per via except like
    am is are was were be been being do does did done doing have has had having will would shall should can could may
    might must ought not
    there here then too also very just only even still again ever never once
    """.split()
)
"""English words of closed classes. In other languages every word is `content` or `number`."""

_CLITICS = frozenset({"s", "ll", "re", "ve", "d", "m"})
_NEGATED_STEMS = frozenset({"ca", "wo", "sha", "ai"})
_APOSTROPHES = "'’"
_WORD = re.compile("w+(?:'w+)*")
_PRECEDENCE = (VALUE, KEY, CONTENT, NUMBER, FUNCTION)


def is_delimiter(char: str) -> bool:
    """Whether ``char`` is punctuation, a separator, white space or an invisible control character.

    Unicode categories P, Z, Cc and Cf, the mathematical signs (Sm), the box drawing characters, and all ASCII
    punctuation except the dollar sign. Other currency signs and emoji are content.
    """
    category = unicodedata.category(char)
    return (
        category[0] in "PZ"
        or category in ("Cc", "Cf", "Sm")
        or (char in string.punctuation and char != "$")
        or "\u2500" <= char <= "\u257f"
    )


def is_function_word(word: str) -> bool:
    """Whether ``word`` is of a closed class, alone or with a clitic: `the`, `he's`, `don't`."""
    word = word.casefold().replace("’", "'")
    if word in FUNCTION_WORDS:
        return True
    if word.endswith("n't"):
        return word[:-3] in FUNCTION_WORDS or word[:-3] in _NEGATED_STEMS
    head, _, clitic = word.partition("'")
    return head in FUNCTION_WORDS and clitic in _CLITICS


def classify(
    text: str, spans: Iterable[Span], offsets: Sequence[tuple[int, int]], special: Sequence[bool]
) -> tuple[str | None, ...]:
    """The atom type of each token; ``None`` for special tokens, which are never candidates.

    ``offsets`` are character positions in ``text``; an empty offset is white space that the tokenizer made up or
    trimmed, a delimiter. Where a token covers several words, the most telling of their types wins.
    """
    roles = _character_roles(text, spans)
    return tuple(
        None if is_special else next((role for role in _PRECEDENCE if role in roles[start:stop]), DELIMITER)
        for (start, stop), is_special in zip(offsets, special, strict=True)
    )


def _character_roles(text: str, spans: Iterable[Span]) -> list[str]:
    roles = [DELIMITER if is_delimiter(char) else CONTENT for char in text]
    for match in _WORD.finditer("".join(map(_mask, text))):
        start, stop = match.span()
        _paint(roles, start, stop, _word_role(text[start:stop]))
    for span in spans:
        _paint(roles, span.start, span.stop, span.role)
    return roles


def _paint(roles: list[str], start: int, stop: int, role: str) -> None:
    roles[start:stop] = [old if old == DELIMITER else role for old in roles[start:stop]]


def _mask(char: str) -> str:
    """One letter for the character's part in a word: ``re`` counts combining marks as no part of one."""
    if char in _APOSTROPHES:
        return "'"
    return "w" if unicodedata.category(char)[0] in "LNM" else " "


def _word_role(word: str) -> str:
    if any(unicodedata.category(char)[0] == "N" for char in word):
        return NUMBER
    return FUNCTION if is_function_word(word) else CONTENT
