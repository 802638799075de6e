"""What a corpus looks like before anything is trained: counts, lengths, overlaps, near duplicates, families, findings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cedkv.core.stats import order_statistic_quantile
from cedkv.data.encode import EncodedCorpus, EncodedOff
from cedkv.data.findings import Finding, Opening, findings
from cedkv.data.near import words
from cedkv.data.overlaps import Overlap, overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cedkv.config import Config
    from cedkv.data.records import Corpus

OPENING_WORDS: Final = 3
_OPENINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of ``count`` texts, special ones included: order statistics, never interpolated."""

    count: int
    least: int
    median: int
    p95: int
    most: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths | None:
        """None where there are none."""
        if not lengths:
            return None
        middle, high = (int(order_statistic_quantile(lengths, q)) for q in (0.5, 0.95))
        return cls(len(lengths), min(lengths), middle, high, max(lengths))


@dataclass(frozen=True, slots=True)
class Review:
    """The report. ``rows``: rows that are used, ``asked``: rows that the configuration asks for where it says so.

    ``families``: OFF prompts by family and split. ``slots``: of all documents; ``gated``: whether they have gates.
    """

    model: str
    context: int
    documents_given: int
    rows: dict[str, int]
    asked: dict[str, int]
    slots: int
    gated: bool
    lengths: dict[str, Lengths]
    overlaps: list[Overlap]
    families: dict[str, dict[str, int]]
    openings: list[Opening]
    findings: list[Finding]


def review(
    config: Config,
    corpus: Corpus,
    encoded: EncodedCorpus,
    sealed: Sequence[EncodedOff],
    *,
    context: int,
    documents_given: int,
) -> Review:
    """The report on a corpus as training would use it.

    Args:
        encoded: the corpus as ids; ``sealed`` its sealed set.
        context: tokens the model was made for.
        documents_given: documents in the file, of which the first ones are used.
    """
    sizes = config.phase3.eval
    found = overlaps(corpus)
    families = _families(corpus)
    openings = [opening for part in ("on_train", *_OFF) for opening in _openings(part, corpus)]
    slots = len(corpus.documents) * config.phase3.memory.slots
    return Review(
        model=config.model.name_or_path,
        context=context,
        documents_given=documents_given,
        rows={name: len(rows) for name, rows in corpus.parts().items()},
        asked={
            "documents": sizes.on_samples,
            "off_train": sizes.off_samples,
            "stress": sizes.off_fixed_stress.size,
            "sealed": sizes.off_sealed.size,
        },
        slots=slots,
        gated=config.phase3.mix.slot_gate == "affine",
        lengths=_lengths(encoded, sealed),
        overlaps=found,
        families=families,
        openings=openings,
        findings=findings(config, corpus, found, families, openings),
    )


_OFF: Final = ("off_train", "stress", "sealed")


def _lengths(encoded: EncodedCorpus, sealed: Sequence[EncodedOff]) -> dict[str, Lengths]:
    on = (*encoded.on_train, *encoded.on_eval)
    documents = [len(context.ids) for context in encoded.contexts]
    found = {
        "documents": documents,
        "ON prompts": [len(row.prompt) for row in on],
        "ON answers": [len(row.answer) for row in on],
        "document, prompt and answer": [
            documents[row.document] + len(row.prompt) - encoded.skipped + len(row.answer) for row in on
        ],
        "OFF train": [len(row.prompt) for row in encoded.off_train],
        "OFF stress": [len(row.prompt) for row in encoded.stress],
        "OFF sealed": [len(row.prompt) for row in sealed],
    }
    return {name: found_ for name, lengths in found.items() if (found_ := Lengths.of(lengths))}


def _families(corpus: Corpus) -> dict[str, dict[str, int]]:
    counts = {part: Counter(row.family for row in getattr(corpus, part)) for part in _OFF}
    total = sum(counts.values(), Counter[str]())
    return {family: {part: counts[part][family] for part in _OFF} for family, _ in total.most_common()}


def _openings(part: str, corpus: Corpus) -> Iterator[Opening]:
    """The openings that several prompts of a part share, most frequent first."""
    rows = getattr(corpus, part)
    counts = Counter(" ".join(words(row.prompt)[:OPENING_WORDS]) for row in rows)
    for opening, count in counts.most_common(_OPENINGS):
        if count > 1:
            yield Opening(part, opening, count, count / len(rows))
