"""What should be known about a corpus before anything is trained: remarks, each with its remedy.

What is wrong with the rows themselves is an error earlier, where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cedkv.core.stats import upper_bound_rank
from cedkv.data.near import occurs, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cedkv.config import Config
    from cedkv.data.overlaps import Overlap
    from cedkv.data.records import Corpus, OnPrompt

OFF_PROMPTS_PER_SLOT: Final = 32
"""OFF training prompts for every slot of all documents, under which gates know too little."""
_SHOWN: Final = 3  # prompts that a finding names
_NOTABLE: Final = 0.01  # of a set's prompts: what could carry a p99
_ALIKE: Final = 0.5  # of a set's prompts with one opening


@dataclass(frozen=True, slots=True)
class Opening:
    """How many prompts of a part begin with the same words."""

    part: str
    words: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A remark on the corpus, by the name of its rule, with a remedy."""

    rule: str
    message: str


def findings(
    config: Config,
    corpus: Corpus,
    overlaps: Sequence[Overlap],
    families: Mapping[str, Mapping[str, int]],
    openings: Sequence[Opening],
) -> list[Finding]:
    """Everything that is to be said.

    Args:
        families: OFF prompts by family and part.
        openings: how the prompts of each part begin.
    """
    return [
        *_overlapping(overlaps),
        *_answers(corpus),
        *_sizes(config, corpus),
        *_one_sided(families, corpus),
        *_monotonous(openings),
    ]


def _overlapping(found: Sequence[Overlap]) -> Iterator[Finding]:
    for overlap in found:
        if overlap.part == overlap.other or not overlap.prompts:
            continue
        first = overlap.examples[0]
        seen = (
            f"{overlap.prompts} of {overlap.of} {overlap.part} prompts nearly repeat {overlap.other} prompts"
        )
        example = f"(e.g. {first.text!r} and {first.other!r}, {first.similarity:.2f})"
        if overlap.other == "on":
            yield Finding(
                "off_near_on",
                f"{seen} {example}: no memory can answer the one and leave the other as it was; drop one of each two",
            )
        elif overlap.prompts > _NOTABLE * overlap.of:
            yield Finding(
                "near_duplicates",
                f"{seen} {example}: an exam in what is known already; drop them, or keep all of a kind in one split",
            )


def _answers(corpus: Corpus) -> Iterator[Finding]:
    rows = (*corpus.on_train, *corpus.on_eval)
    texts = {document.id: document.text for document in corpus.documents}
    given = [row for row in rows if occurs(row.answer, row.prompt)]
    if given:
        yield Finding(
            "answer_in_prompt",
            f"{_some(given)} of {len(rows)} ON prompts hold their answer: no memory is needed for it; reword them",
        )
    foreign = [row for row in rows if not occurs(row.answer, texts[row.document])]
    if foreign:
        yield Finding(
            "answer_not_in_document",
            f"the answers of {_some(foreign)} of {len(rows)} ON prompts are no words of their documents: right where they "
            "follow from it, else mend the row",
        )
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(" ".join(words(row.prompt)), set()).add(" ".join(words(row.answer)))
    unclear = [row for row in rows if len(answers[" ".join(words(row.prompt))]) > 1]
    if unclear:
        yield Finding(
            "unclear_prompt",
            f"{_some(unclear)} of {len(rows)} ON prompts have another answer in another document: each should name what it is "
            "about",
        )


def _some(rows: Sequence[OnPrompt]) -> str:
    names = ", ".join(repr(row.id) for row in rows[:_SHOWN])
    return f"{len(rows)} ({names}{', ...' if len(rows) > _SHOWN else ''})"


def _sizes(config: Config, corpus: Corpus) -> Iterator[Finding]:
    keys, train = config.phase3, len(corpus.off_train)
    slots = len(corpus.documents) * keys.memory.slots
    if keys.mix.slot_gate == "affine" and train < OFF_PROMPTS_PER_SLOT * slots:
        yield Finding(
            "gates",
            f"{train} OFF training prompts for the gates of {slots} slots: what comes near a slot and is not among them will pass; "
            f"add prompts and raise phase3.eval.off_samples to {OFF_PROMPTS_PER_SLOT * slots} or more, better twice that, or "
            "lower phase3.memory.slots",
        )
    asked = len(corpus.on_eval)
    if 1 / asked > keys.thresholds.on_gain_min:
        yield Finding(
            "few_eval",
            f"ON evaluation has {asked} prompts, so that one of them moves on_gain by {1 / asked:.3f}, more than the "
            f"{keys.thresholds.on_gain_min:g} that Gate A asks for; add prompts of split 'eval'",
        )
    if upper_bound_rank(len(corpus.stress)) is None:
        yield Finding(
            "small_stress",
            f"a stress set of {len(corpus.stress)} has no 95 % bound on its p99; raise phase3.eval.off_fixed_stress.size to 299 or "
            "more",
        )
    certification = keys.certification
    confidence = 1.0 - certification.delta / certification.max_attempts
    if corpus.sealed and upper_bound_rank(len(corpus.sealed), confidence=confidence) is None:
        yield Finding(
            "small_sealed",
            f"a sealed set of {len(corpus.sealed)} can certify no memory, not even one that drifts on none of it; add OFF prompts",
        )


def _one_sided(families: Mapping[str, Mapping[str, int]], corpus: Corpus) -> Iterator[Finding]:
    stress, train = len(corpus.stress), len(corpus.off_train)
    unseen = [name for name, counts in families.items() if counts["stress"] and not counts["off_train"]]
    if unseen:
        yield Finding(
            "family_not_trained",
            f"families {', '.join(map(repr, unseen))} are in the stress set and not in training: add such prompts to training, or "
            "know that they are an exam in something else",
        )
    # With fewer expected prompts than five a family may be absent by chance.
    absent = [n for n, c in families.items() if not c["stress"] and c["off_train"] * stress >= 5 * train]
    if absent:
        yield Finding(
            "family_not_examined",
            f"families {', '.join(map(repr, absent))} are trained on and not in the stress set: add such prompts to it",
        )
    if len(families) == 1:
        yield Finding(
            "one_family",
            f"all OFF prompts are of the family {next(iter(families))!r}: tables cannot tell where a memory leaks; name families",
        )


def _monotonous(openings: Sequence[Opening]) -> Iterator[Finding]:
    for opening in openings:
        if opening.share > _ALIKE:
            yield Finding(
                "one_opening",
                f"{opening.share:.0%} of the {opening.part} prompts begin with {opening.words!r}: add prompts of other forms",
            )
