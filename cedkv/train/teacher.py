"""What the teacher says: every answer behind its document, by plain forward passes of the bare model.

A document is read once, into the model's own key/value cache; its prompts go on from there, many in one
pass. Nothing is injected. A probe of prompts is read by passes over the whole of document, prompt and answer, one at a
time: where a family's cache says anything else, every prompt is read by whole passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.core.team import ALONE, Team
from cedkv.data.batching import by_length, by_similar_length, pad_right
from cedkv.data.encode import EncodedCorpus, EncodedOn
from cedkv.evaluate import ROUNDING, answer_log_probs, log_prob_type, widened
from cedkv.injection.storage import gathered
from cedkv.injection.tree import Ids
from cedkv.models.layers import in_one_piece
from cedkv.models.types import CausalLM

TOLERANCE = 1e-5
"""Nats. Going on from a cache adds the same numbers in another order: rounding only."""
PROBE = 8
DOCUMENTS_AT_ONCE = 8
"""Documents of one length that are held, as keys and values of all layers, at the same time."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as it stands behind the document numbered `document`, and the answer whose tokens are scored.

    Raises:
        ValueError: a prompt or an answer without a token.
    """

    document: int
    prompt: Ids
    answer: Ids

    def __post_init__(self) -> None:
        if not self.prompt or not self.answer:
            raise ValueError("a question needs a prompt and an answer of at least one token each")

    @property
    def shown(self) -> Ids:
        """What the model reads of it: the last answer token predicts nothing that is scored."""
        return self.prompt + self.answer[:-1]


def questions_of(encoded: EncodedCorpus, prompts: Iterable[EncodedOn]) -> list[Question]:
    """ON prompts as they stand behind their documents."""
    return [Question(row.document, row.prompt[encoded.skipped :], row.answer) for row in prompts]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Log-probabilities [A, V] at the answer tokens of every question.

    `cached`: whether documents were read once. `error`: how far that is from whole passes on the probe, in nats; 0 where
    the answers come from whole passes.
    """

    answers: list[Tensor]
    cached: bool
    error: float


@torch.no_grad()
def ask_teacher(
    model: CausalLM,
    documents: Sequence[Ids],
    questions: Sequence[Question],
    *,
    rows: int,
    team: Team = ALONE,
) -> Teacher:
    """The teacher's answers, by at most `rows` questions a pass; the passes are dealt to `team`."""
    failures = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
    found: dict[int, Tensor] = {}
    cached, error = True, 0.0
    try:
        found = _from_cache(model, documents, questions, rows, team)
    except failures:
        cached = False  # this family has no cache, or one that is built in another way
    if not team.any(not cached):
        lengths = [len(question.answer) for question in questions]
        answers = gathered(found, lengths, team, log_prob_type(model), model.device)
        probe = _probe(documents, questions)
        try:
            asked, said = [questions[i] for i in probe], [answers[i] for i in probe]
            error, cached = _judged(model, documents, asked, said)
        except failures:
            cached = False
        if not team.any(not cached):
            return Teacher(answers, cached=True, error=error)
    return Teacher(_whole(model, documents, questions, rows, team), cached=False, error=0.0)


def _judged(
    model: CausalLM, documents: Sequence[Ids], asked: Sequence[Question], found: Sequence[Tensor]
) -> tuple[float, bool]:
    """How far `found` is from whole passes, and whether that is rounding.

    Where rounding alone makes more than `TOLERANCE`, as in half precision, the cache must agree to it in a copy of the
    model in the next wider type, and be as near to that copy's whole passes as the model's own are, `ROUNDING` times.
    """
    whole = _whole(model, documents, asked, 1)
    error = _distance(whole, found)
    if error <= TOLERANCE or model.dtype is torch.float64:
        return error, error <= TOLERANCE
    wide = widened(model)
    truth = _whole(wide, documents, asked, 1)
    again = _from_cache(wide, documents, asked, len(asked))
    exact = _distance(truth, [again[i] for i in range(len(asked))])
    limit = max(TOLERANCE, ROUNDING * _distance(truth, whole))
    return error, exact <= TOLERANCE and _distance(truth, found) <= limit


def _probe(documents: Sequence[Ids], questions: Sequence[Question]) -> list[int]:
    """Questions of every length, the shortest and the longest among them, and the longest prompt.

    What depends on the length of all that is read, as windows and some rotary embeddings do, shows at the ends.
    """
    order = sorted(
        range(len(questions)), key=lambda i: len(documents[questions[i].document] + questions[i].shown)
    )
    last = len(order) - 1
    spread = {order[round(n * last / (PROBE - 1))] for n in range(PROBE)}
    return sorted(spread | {max(order, key=lambda i: len(questions[i].prompt))})


def _distance(whole: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Of two log-probabilities, the mean distance under the teacher, at the worst answer token; no KL is larger."""
    a, b = torch.cat(list(whole)), torch.cat(list(found))
    gap = torch.where(a == b, 0.0, (a - b).abs())  # both may be -inf
    return (a.exp() * gap).sum(-1).max().item()


def _whole(
    model: CausalLM, documents: Sequence[Ids], questions: Sequence[Question], rows: int, team: Team = ALONE
) -> list[Tensor]:
    """By passes over document, prompt and answer."""
    texts = [documents[question.document] + question.prompt for question in questions]
    answers = [question.answer for question in questions]
    return answer_log_probs(model, texts, answers, batch_rows=rows, team=team)


def _from_cache(
    model: CausalLM, documents: Sequence[Ids], questions: Sequence[Question], rows: int, team: Team = ALONE
) -> dict[int, Tensor]:
    """By passes over prompt and answer, which go on from the cache of their documents: those dealt to this process."""
    found: dict[int, Tensor] = {}
    groups = list(by_length([len(document) for document in documents], DOCUMENTS_AT_ONCE))
    asked_of = Counter(question.document for question in questions)
    costs = [sum(len(documents[n]) * (1 + asked_of[n]) for n in group) for group in groups]
    for number in team.deal(costs):
        group = groups[number]
        ids = torch.tensor([documents[n] for n in group], device=model.device)
        positions = torch.arange(ids.shape[1], device=model.device)[None]
        cache = model(input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values
        row_of = {n: row for row, n in enumerate(group)}
        asked = [i for i, question in enumerate(questions) if question.document in row_of]
        for part in by_similar_length([len(questions[i].shown) for i in asked], rows):
            chosen = [questions[asked[p]] for p in part]
            own = deepcopy(cache)  # a pass writes to its cache
            picked = [row_of[question.document] for question in chosen]
            own.batch_select_indices(torch.tensor(picked, device=model.device))
            for p, answer in zip(part, answers_behind(model, chosen, ids.shape[1], own), strict=True):
                found[asked[p]] = answer
    return found


def answers_behind(
    model: CausalLM, questions: Sequence[Question], start: int, cache: object = None
) -> list[Tensor]:
    """Log-probabilities [A, V] of every answer, by one pass that begins at position `start`.

    Args:
        cache: keys and values of what stands before, a row for each question; the pass writes to it.
    """
    ids = pad_right([question.shown for question in questions], model.device)
    first = min(len(question.prompt) for question in questions) - 1
    keep = ids.shape[1] - first
    positions = torch.arange(start, start + ids.shape[1], device=model.device)[None]
    going_on = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
    with in_one_piece(model):
        logits = model(input_ids=ids, position_ids=positions, logits_to_keep=keep, **going_on).logits[
            :, -keep:
        ]
    found = []
    for row, question in zip(logits, questions, strict=True):
        begin = len(question.prompt) - 1 - first
        said = row[begin : begin + len(question.answer)]
        found.append(said.to(torch.promote_types(said.dtype, torch.float32)).log_softmax(-1))
    return found
