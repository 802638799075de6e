"""Self-study: the user's own model asks about a document and answers with the document in front of it.

The answer is what the model says to the very prompt that a memory will be trained on. A prompt is kept only where the
teacher, which reads the document, gives that answer token by token, and the base, which does not, fails to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final

import torch

from cedkv.core.errors import UserError
from cedkv.data.batching import by_similar_length, pad_left
from cedkv.data.encode import encode_context, leading_special
from cedkv.data.own.asked import Asked
from cedkv.data.own.questions import (
    ANSWER,
    ANSWER_PLAIN,
    ASK,
    ASK_PLAIN,
    QUESTIONS,
    answer_in,
    questions_in,
    worth_asking,
)
from cedkv.data.records import Document, normalised
from cedkv.data.tokens import check_fits, encode_on, encode_prompt, marker_ids
from cedkv.evaluate import answer_log_probs, score_answers
from cedkv.injection.tree import Ids
from cedkv.models.load import LoadedModel
from cedkv.models.quiet import quiet
from cedkv.train.teacher import Question, ask_teacher

KIND: Final = "self-study"
ASKING_TOKENS: Final = 384
"""Tokens beside a document that asking about it takes: what the model is told, and what it says."""
_SAID_TOKENS: Final = 288
_QUESTION_TOKENS: Final = 32
_ANSWER_TOKENS: Final = 24
_ROWS: Final = 8  # of one pass, each behind a document
_ROUNDS: Final = 3  # the first one greedy, the others sampled
_SAMPLING: Final = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0}
_TAIL: Final = 8  # tokens of a prompt that are decoded again with what follows: only so is a first space one


@dataclass(frozen=True, slots=True)
class Written:
    """What a model asked about each document: questions worth asking; and how many lines and questions there were."""

    questions: list[list[str]]
    lines: int
    found: int


@dataclass(frozen=True, slots=True)
class Study:
    """What documents are asked, by their ids, and how much of it came through every sieve."""

    asked: dict[str, list[Asked]]
    counts: dict[str, int]

    @property
    def remark(self) -> str:
        """The counts in words."""
        return "self-study: " + ", ".join(f"{count} {what}" for what, count in self.counts.items())


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A question about the document of that number as a prompt, and what may be its answer, as texts and as ids."""

    document: int
    question: str
    prompt: str
    answer: str
    ids: Ids
    answer_ids: Ids


def study(
    loaded: LoadedModel,
    documents: Sequence[Document],
    *,
    separator: str,
    seed: int,
    say: Callable[[str], None],
) -> Study:
    """Have the model ask about every document, and keep what only who has read it can answer.

    Args:
        separator: what stands between a document and a prompt in the teacher's context.
        seed: of the sampled rounds.
        say: told where it stands.

    Raises:
        UserError: nothing came through.
    """
    written = ask(loaded, documents, seed, say)
    result = sift(loaded, documents, written, separator)
    if not any(result.asked.values()):
        raise UserError(
            f"{result.remark}: nothing is left; take a model that follows instructions, or --prompts cloze,continuation, "
            "which needs none"
        )
    return result


def as_prompt(loaded: LoadedModel, question: str) -> str:
    """A question in the form that the model is asked it in."""
    return _told(loaded, ANSWER, ANSWER_PLAIN, question=question)


def ask(loaded: LoadedModel, documents: Sequence[Document], seed: int, say: Callable[[str], None]) -> Written:
    """Tell the model to ask about each document, until there are `QUESTIONS` or all rounds are over."""
    told = [_told(loaded, ASK, ASK_PLAIN, document=d.text, count=QUESTIONS) for d in documents]
    prompts = [encode_prompt(loaded.tokenizer, text, name=KIND) for text in told]
    for document, prompt in zip(documents, prompts, strict=True):
        parts = {"document and what the model is told": len(prompt), "its question": _QUESTION_TOKENS}
        check_fits(f"document {document.id!r}", parts, loaded.context_length)
    found: list[list[str]] = [[] for _ in documents]
    worth, lines = found, 0
    for turn in range(_ROUNDS):
        say(f"self-study: round {turn + 1} of {_ROUNDS}, {sum(map(len, worth))} questions so far")
        said = _said(loaded, prompts, _SAID_TOKENS, None if turn == 0 else seed + turn)
        lines += sum(len(text.splitlines()) for text in said)
        found = [old + questions_in(text) for old, text in zip(found, said, strict=True)]
        worth = _of_one_document([worth_asking(q, d.text) for q, d in zip(found, documents, strict=True)])
        if min(map(len, worth)) >= QUESTIONS:
            break
    return Written(worth, lines, sum(map(len, found)))


@torch.no_grad()
def sift(loaded: LoadedModel, documents: Sequence[Document], written: Written, separator: str) -> Study:
    """Of what was asked, what the model answers with the document and not without it."""
    candidates = _answered(loaded, documents, written.questions, separator)
    taught = list(compress(candidates, _teacher_says(loaded, documents, candidates, separator)))
    kept = list(compress(taught, (not knows for knows in _base_says(loaded, taught))))
    counts = {
        "lines written": written.lines,
        "of them questions": written.found,
        "distinct ones about their document": sum(map(len, written.questions)),
        "answered in a few words of it": len(candidates),
        "answered so again by the teacher": len(taught),
        "not known without the document": len(kept),
    }
    asked: dict[str, list[Asked]] = {document.id: [] for document in documents}
    for one in kept:
        document = documents[one.document].id
        name = f"{KIND}-{len(asked[document])}"
        asked[document].append(Asked(document, KIND, name, name, one.question, one.prompt, one.answer))
    return Study(asked, counts)


def _of_one_document(questions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Without those that are asked about several documents: each would have another answer."""
    often = Counter(normalised(question) for asked in questions for question in asked)
    return [[question for question in asked if often[normalised(question)] == 1] for asked in questions]


def _answered(
    loaded: LoadedModel, documents: Sequence[Document], questions: Sequence[Sequence[str]], separator: str
) -> list[_Candidate]:
    """The questions that the model answers in a few words of the document, which it reads as a teacher does."""
    contexts, skipped = _contexts(loaded, documents, separator)
    asked, behind = [], []
    for number, question in ((n, question) for n, some in enumerate(questions) for question in some):
        prompt = as_prompt(loaded, question)
        ids = contexts[number] + encode_prompt(loaded.tokenizer, prompt, name=KIND)[skipped:]
        if len(ids) + _ANSWER_TOKENS <= loaded.context_length:
            asked.append((number, question, prompt))
            behind.append(ids)
    found = []
    for (number, question, prompt), text in zip(
        asked, _said(loaded, behind, _ANSWER_TOKENS, None), strict=True
    ):
        answer = answer_in(text, question, documents[number].text)
        if answer is None:
            continue
        try:
            ids, answer_ids = encode_on(loaded.tokenizer, prompt, answer)
        except UserError:  # the answer would begin within a token of the prompt
            continue
        found.append(_Candidate(number, question, prompt, answer, ids, answer_ids))
    return found


def _teacher_says(
    loaded: LoadedModel, documents: Sequence[Document], candidates: Sequence[_Candidate], separator: str
) -> list[bool]:
    """Whether the model gives the whole answer behind the document, asked as training will ask it."""
    if not candidates:
        return []
    contexts, skipped = _contexts(loaded, documents, separator)
    questions = [Question(one.document, one.ids[skipped:], one.answer_ids) for one in candidates]
    said = ask_teacher(loaded.model, contexts, questions, rows=_ROWS).answers
    return score_answers(said, [one.answer_ids for one in candidates]).correct


def _base_says(loaded: LoadedModel, candidates: Sequence[_Candidate]) -> list[bool]:
    """Whether the model gives the whole answer without the document."""
    prompts, answers = [one.ids for one in candidates], [one.answer_ids for one in candidates]
    said = answer_log_probs(loaded.model, prompts, answers, batch_rows=_ROWS)
    return score_answers(said, answers).correct


def _contexts(loaded: LoadedModel, documents: Sequence[Document], separator: str) -> tuple[list[Ids], int]:
    """The documents as the teacher reads them, and the tokens that a prompt behind them begins without."""
    tokenizer = loaded.tokenizer
    return [encode_context(tokenizer, d, separator).ids for d in documents], leading_special(tokenizer)


def _told(loaded: LoadedModel, chat: str, plain: str, **parts: object) -> str:
    """What the model is given: a turn of its chat template, where it has one, with the assistant's begun."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        return plain.format(**parts)
    turn = [{"role": "user", "content": chat.format(**parts)}]
    # A model that thinks aloud would spend all its tokens on that; templates that know no such switch ignore it.
    text = str(
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )
    adds = leading_special(tokenizer) and tokenizer.bos_token
    return text.removeprefix(str(adds)) if adds else text  # encoding puts it there again


def _said(loaded: LoadedModel, prompts: Sequence[Ids], tokens: int, seed: int | None) -> list[str]:
    """What the model goes on with, up to ``tokens``: greedily, or sampled by ``seed``. What it ends, ends with a line."""
    model, tokenizer = loaded.model, loaded.tokenizer
    generate: Any = model.generate
    ends = marker_ids(tokenizer)
    options: dict[str, Any] = {"do_sample": False} if seed is None else dict(_SAMPLING)
    options |= {"pad_token_id": min(ends, default=0)}
    found: dict[int, str] = {}
    with quiet(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed or 0)
        for group in by_similar_length([len(prompt) for prompt in prompts], _ROWS):
            batch = pad_left([prompts[i] for i in group], model.device)
            mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
            room = min(tokens, loaded.context_length - batch.ids.shape[1])
            out = generate(input_ids=batch.ids, attention_mask=mask, max_new_tokens=room, **options)
            for row, i in zip(out[:, batch.ids.shape[1] :].tolist(), group, strict=True):
                stop = next((n for n, token in enumerate(row) if token in ends), len(row))
                found[i] = _decoded(tokenizer, prompts[i], row[:stop]) + "\n" * (stop < len(row))
    return [found[i] for i in range(len(prompts))]


def _decoded(tokenizer: Any, prompt: Ids, said: list[int]) -> str:
    """The text of ``said`` behind ``prompt``."""
    tail = list(prompt[-_TAIL:])
    before, whole = (
        str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (tail, tail + said)
    )
    return whole.removeprefix(before)
