"""ON prompts made from documents by rule: the text up to a telling word, or the beginning of a sentence.

Prompt and answer are the document's own words, one behind the other, so such prompts ask for wording and not for
understanding. A prompt is only made where the words before the answer stand nowhere else in all documents.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cedkv.core.errors import UserError
from cedkv.data.near import occurs
from cedkv.data.own.asked import Asked
from cedkv.data.records import Document, normalised
from cedkv.data.roles import is_function_word
from cedkv.data.stress import content_key
from cedkv.data.tokens import encode_on

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from cedkv.data.tokens import FastTokenizer

Kind = Literal["cloze", "continuation"]

LEFT_WORDS: Final = 4
"""Words a prompt has at least; the last so many stand nowhere else in the documents."""
CONTINUED_WORDS: Final = 4
"""Words of a continuation, at most."""
PROMPT_TOKENS: Final = 96
"""Tokens of a prompt, at most; sentences that are longer are asked about within their beginning."""
ANSWER_TOKENS: Final = 24
"""Tokens of an answer, at most."""
CLOZE_TOKENS: Final = PROMPT_TOKENS + ANSWER_TOKENS + 16
"""Tokens beside a document that such a prompt takes, its answer and what separates them included."""
PER_DOCUMENT: Final = 48
"""Prompts of one document, at most."""

_SENTENCE_END = re.compile(
    r"[.!?…]+[\"'”’»)\]*_]*(?=\s)|[。！？]+[」』”’]*|\n[^\S\n]*\n|\n(?=[^\S\n]*(?:[-*+#>|]|\d+[.)])[^\S\n])"
)
_LEAD = re.compile(r"[\s#>|*+-]*(?:\d+[.)]\s+)?")
_WORD = re.compile(r"\w+(?:['’.,:/-]\w+)*")
_LETTERS: Final = 0.75  # of a sentence's characters; with fewer it is a table, a formula or code
_NAME_WORDS: Final = 3
_CLOZES: Final = 3  # of one sentence, where it holds no more numbers and names
_RARE_LETTERS: Final = 4


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and stop of every sentence, heading and item of a list, without what marks it as one."""
    begin = 0
    for end in (*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)):
        lead = _LEAD.match(text, begin, end)
        start = begin if lead is None else lead.end()
        stop = start + len(text[start:end].rstrip())
        if stop > start:
            yield start, stop
        begin = end


def ask_by_rule(
    documents: Sequence[Document], tokenizer: FastTokenizer, *, kinds: Collection[Kind], seed: int
) -> dict[str, list[Asked]]:
    """What every document is asked, by its id, at most `PER_DOCUMENT` prompts each; which of more, ``seed`` decides.

    What is asked of one sentence is one group.
    """
    corpus = _Words.of(documents)
    found: dict[str, list[Asked]] = {}
    for document in documents:
        asked = [one for one in _of(document, corpus, kinds) if _fits(one, tokenizer)]
        order = sorted(
            (one.name for one in asked), key=lambda name: content_key(seed, f"{document.id}\n{name}")
        )
        drawn = set(order[:PER_DOCUMENT])
        found[document.id] = [one for one in asked if one.name in drawn]
    return found


@dataclass(frozen=True, slots=True)
class _Words:
    """What is asked of the words of all documents together."""

    often: Counter[str]
    contexts: Counter[tuple[str, ...]]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> _Words:
        often: Counter[str] = Counter()
        contexts: Counter[tuple[str, ...]] = Counter()
        for document in documents:
            words = [normalised(match.group()) for match in _WORD.finditer(document.text)]
            often.update(words)
            contexts.update(zip(*(words[n:] for n in range(LEFT_WORDS)), strict=False))
        return cls(often, contexts)


def _of(document: Document, corpus: _Words, kinds: Collection[Kind]) -> Iterator[Asked]:
    """Everything that could be asked about the document, without regard to tokens."""
    text = document.text
    lower = {match.group() for match in _WORD.finditer(text) if match.group().islower()}
    for number, (start, stop) in enumerate(sentences(text)):
        words = [match.span() for match in _WORD.finditer(text, start, stop)]
        if len(words) <= LEFT_WORDS or not _is_prose(text[start:stop]):
            continue
        places = [n for n in range(LEFT_WORDS, len(words)) if _can_cut(text, start, words, n, corpus)]
        asked = _telling(text, words, places, corpus, lower) if "cloze" in kinds else {}
        for n, last in sorted(asked.items()):
            cut, end = words[n][0] - 1, words[last][1]
            if not occurs(text[cut:end], text[start:cut]):
                yield _cloze(document, "cloze", number, (start, cut, end))
        if "continuation" in kinds:
            middle = max(LEFT_WORDS, len(words) // 2)
            for n in [n for n in places if n >= middle and n not in asked][:1]:  # no prompt twice
                cut, end = words[n][0] - 1, words[min(n + CONTINUED_WORDS, len(words)) - 1][1]
                yield _cloze(document, "continuation", number, (start, cut, end))


def _cloze(document: Document, kind: Kind, sentence: int, places: tuple[int, int, int]) -> Asked:
    start, cut, end = places
    prompt, answer = document.text[start:cut], document.text[cut:end]
    return Asked(document.id, kind, f"{kind}-{cut}", f"sentence-{sentence}", prompt, prompt, answer)


def _is_prose(sentence: str) -> bool:
    return sum(char.isalpha() or char == " " for char in sentence) >= _LETTERS * len(sentence)


def _can_cut(text: str, start: int, words: Sequence[tuple[int, int]], n: int, corpus: _Words) -> bool:
    """Whether the text may be cut before word ``n``: behind a single space, and words that stand nowhere else."""
    first = words[n][0]
    if text[first - 1] != " " or first - 1 <= start or text[first - 2].isspace():
        return False
    context = tuple(normalised(text[a:b]) for a, b in words[n - LEFT_WORDS : n])
    return corpus.contexts[context] == 1


def _telling(
    text: str,
    words: Sequence[tuple[int, int]],
    places: Iterable[int],
    corpus: _Words,
    lower: Collection[str],
) -> dict[int, int]:
    """Last word by first word of the numbers and names that may be asked for; of too few, the rarest long words, too."""
    told: dict[int, int] = {}
    rest: list[tuple[int, int, int]] = []
    behind = -1
    for n in places:
        word = text[slice(*words[n])]
        if n <= behind:
            continue
        if any(char.isnumeric() for char in word):
            told[n] = n
        elif _is_name(word, lower):
            told[n] = behind = _name_end(text, words, n)
        elif len(word) >= _RARE_LETTERS and not is_function_word(word):
            rest.append((corpus.often[normalised(word)], -len(word), n))
    room = max(0, _CLOZES - len(told))
    return told | {n: n for _, _, n in sorted(rest)[:room]}


def _is_name(word: str, lower: Collection[str]) -> bool:
    """Whether a word within a sentence looks like a name: a capital, and nowhere in the document without one."""
    return word[0].isupper() and word.lower() not in lower and not is_function_word(word)


def _name_end(text: str, words: Sequence[tuple[int, int]], n: int) -> int:
    """The last word of the name that begins with word ``n``."""
    last = n
    while (
        last + 1 < min(n + _NAME_WORDS, len(words))
        and text[words[last][1] : words[last + 1][0]] == " "
        and text[words[last + 1][0]].isupper()
    ):
        last += 1
    return last


def _fits(one: Asked, tokenizer: FastTokenizer) -> bool:
    """Whether prompt and answer are short enough and meet between two tokens."""
    try:
        prompt, answer = encode_on(tokenizer, one.prompt, one.answer)
    except UserError:
        return False
    return len(prompt) <= PROMPT_TOKENS and len(answer) <= ANSWER_TOKENS
