"""Questions that a model writes about a document, and its answers, as text: what is asked for, and what is taken of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cedkv.data.near import near_duplicates, occurs, words
from cedkv.data.roles import is_function_word

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTIONS: Final = 16
"""Questions that a model is asked for at once."""
ANSWER_WORDS: Final = 12

ASK: Final = (
    "{document}\n\nWrite {count} short questions about the text above, one on each line and nothing else. Each is answered by a "
    "few words of the text, and names what it is about, so that somebody who does not see the text knows what is meant."
)
"""What a model with a chat template is told."""
ASK_PLAIN: Final = "{document}\n\n{count} questions about this text, each answered by a few words of it:\n1."
"""What any other model goes on with."""
ANSWER: Final = "{question}\nAnswer with a few words, nothing else."
ANSWER_PLAIN: Final = "Question: {question} Answer:"

_QUESTION = re.compile(r"\s*(?:\d+\s*[.):]|[-*•])?\s*(?:Q(?:uestion)?\s*\d*\s*:)?\s*(\w[^?]*\?)\s*")
_END = re.compile(r"\s*\n|(?<=[.!?])\s")
"""Where an answer ends: with its line, or with its sentence, for models that go on to ask something themselves."""
_WORDS: Final = range(4, 41)


def questions_in(said: str) -> list[str]:
    """The lines that are one question and nothing else, without their numbers."""
    found = [match[1] for line in said.splitlines() if (match := _QUESTION.fullmatch(line))]
    return [question for question in found if len(words(question)) in _WORDS]


def worth_asking(questions: Sequence[str], document: str) -> list[str]:
    """Those that name something of the document, one of all that nearly repeat each other."""
    telling = {word for word in words(document) if not is_function_word(word)}
    about = [question for question in questions if telling.intersection(words(question))]
    near = near_duplicates(about)
    again = {*near.right.tolist()}
    seen: set[int] = set()
    kept = []
    for question, group in zip(about, near.group.tolist(), strict=True):
        if group not in seen and group not in again:
            kept.append(question)
        seen.add(group)
    return kept


def answer_in(said: str, question: str, document: str) -> str | None:
    """The answer at the beginning of what the model said, if it is one: a few words of the document, then an end.

    A full stop is no part of it. ``said`` has a line end where the model ended it; what it was kept from ending has none.
    """
    end = _END.search(said)
    answer = said[: end.start()].rstrip(".!") if end else ""
    short = 0 < len(words(answer)) <= ANSWER_WORDS
    if short and occurs(answer, document) and not occurs(answer, question):
        return answer
    return None
