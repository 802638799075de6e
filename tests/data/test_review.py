"""The report on a corpus: planted flaws are found, each by its rule, and nothing is found where there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cedkv.config import Config
from cedkv.data.encode import encode_corpus, encode_off
from cedkv.data.overlaps import overlaps
from cedkv.data.records import Corpus, Document, OffPrompt, OnPrompt
from cedkv.data.review import Review, review
from cedkv.data.tokens import FastTokenizer
from cedkv.report.data_report import to_json, to_table

PLACES = "harbour mill school tower".split()
LONG = (
    "when the tide is low the keeper of the light walks out to the {} and counts what the sea has left of it"
)


def clean() -> Corpus:
    """Four documents, 64 prompts to judge by, OFF prompts of two families in all sets."""
    documents = tuple(
        Document(place, f"The {place} opens at {n} and closes late.") for n, place in enumerate(PLACES, 20)
    )
    splits = (("train", 8), ("eval", 16))
    on = [
        OnPrompt(f"{place}-{split}-{k}", place, f"{split} {k}: the {place} opens at", f" {n}", split)  # type: ignore[arg-type]
        for n, place in enumerate(PLACES, 20)
        for split, count in splits
        for k in range(count)
    ]

    def off(split: str, count: int) -> tuple[OffPrompt, ...]:
        return tuple(
            OffPrompt(f"{split}-{n}", f"{n} {split} {family} is", family)
            for n in range(count // 2)
            for family in ("sums", "capitals")
        )

    train, evaluation = (tuple(row for row in on if row.split == split) for split, _ in splits)
    return Corpus(documents, train, evaluation, off("train", 300), off("stress", 320), off("sealed", 500))


@pytest.fixture
def look(byte_level: FastTokenizer) -> Callable[..., Review]:
    """Reports on a corpus."""

    def run(corpus: Corpus, **keys: Any) -> Review:
        phase3 = {"mix": {"slot_gate": "affine"}, "memory": {"slots": 2}, **keys}
        sizes = {"on_samples": 4, "off_samples": 300, "off_fixed_stress": {"size": 320}}
        config = Config.model_validate({"phase3": {"eval": sizes, **phase3}})
        encoded = encode_corpus(config, corpus, byte_level, 512)
        sealed = encode_off(byte_level, corpus.sealed, 512) if corpus.sealed else ()
        return review(config, corpus, encoded, sealed, context=512, documents_given=9)

    return run


def rules(found: Review) -> list[str]:
    return [finding.rule for finding in found.findings]


def test_nothing_is_found_where_nothing_is_wrong(look: Callable[..., Review]) -> None:
    found = look(clean())
    assert found.findings == []
    assert found.rows == {
        "documents": 4,
        "on_train": 32,
        "on_eval": 64,
        "off_train": 300,
        "stress": 320,
        "sealed": 500,
    }
    assert (found.slots, found.documents_given) == (8, 9)
    assert found.families["sums"] == {"off_train": 150, "stress": 160, "sealed": 250}


def test_lengths_are_those_of_the_tokens(look: Callable[..., Review], byte_level: FastTokenizer) -> None:
    corpus = clean()
    found = look(corpus).lengths["OFF stress"]
    tokens = np.array([len(byte_level(row.prompt)["input_ids"]) for row in corpus.stress])
    quantile = {q: int(np.quantile(tokens, q, method="inverted_cdf")) for q in (0.5, 0.95)}
    assert (found.count, found.least, found.most) == (320, tokens.min(), tokens.max())
    assert (found.median, found.p95) == (quantile[0.5], quantile[0.95])


def changed(corpus: Corpus, part: str, *prompts: str, family: str = "sums") -> Corpus:
    """With `prompts` in place of the first OFF prompts of a part."""
    rows = getattr(corpus, part)
    new = tuple(OffPrompt(f"new-{n}", prompt, family) for n, prompt in enumerate(prompts))
    return replace(corpus, **{part: (*new, *rows[len(new) :])})


def on_changed(corpus: Corpus, **fields: str) -> Corpus:
    """With the first evaluation prompt changed."""
    first, *rest = corpus.on_eval
    return replace(corpus, on_eval=(replace(first, **fields), *rest))


FLAWS: dict[str, Callable[[], Corpus]] = {
    "near_duplicates": lambda: changed(
        changed(clean(), "off_train", *(LONG.format(f"wreck {n}") for n in range(4))),
        "stress",
        *(LONG.format(f"rocks {n}") for n in range(4)),
    ),
    "off_near_on": lambda: changed(clean(), "sealed", "Eval 0 – the harbour opens at?"),
    "answer_in_prompt": lambda: on_changed(clean(), prompt="eval 0: at 20 the harbour opens at"),
    "answer_not_in_document": lambda: on_changed(clean(), answer=" seven"),
    "unclear_prompt": lambda: on_changed(clean(), prompt="eval 0: the mill opens at"),
    "family_not_trained": lambda: changed(clean(), "stress", "The flag of Norway is", family="flags"),
    "family_not_examined": lambda: changed(
        clean(), "off_train", *(f"Flag {n} is" for n in range(40)), family="flags"
    ),
    "one_family": lambda: replace(
        clean(),
        **{
            p: tuple(replace(r, family="x") for r in getattr(clean(), p))
            for p in ("off_train", "stress", "sealed")
        },
    ),
    "one_opening": lambda: changed(clean(), "stress", *(f"What is the sum {n}" for n in range(170))),
    "few_eval": lambda: replace(clean(), on_eval=clean().on_eval[:40]),
    "small_stress": lambda: replace(clean(), stress=clean().stress[:298]),
    "small_sealed": lambda: replace(clean(), sealed=clean().sealed[:458]),
    "gates": lambda: replace(clean(), off_train=clean().off_train[:250]),
}


@pytest.mark.parametrize("rule", FLAWS)
def test_a_planted_flaw_is_found_by_its_rule_and_by_no_other(look: Callable[..., Review], rule: str) -> None:
    found = look(FLAWS[rule]())
    assert rules(found) == [rule]
    assert any(mark in found.findings[0].message for mark in (";", ":"))  # what it means, or what to do
    assert f"{rule}: " in to_table(found)


def test_gates_that_are_not_there_need_no_prompts(look: Callable[..., Review]) -> None:
    corpus = replace(clean(), off_train=clean().off_train[:250])
    assert rules(look(corpus, mix={"slot_gate": "none"})) == []


def test_a_run_without_a_sealed_set_is_none_to_certify(look: Callable[..., Review]) -> None:
    assert rules(look(replace(clean(), sealed=()))) == []


# ------------------------------------------------------------------------------------------------- near duplicates
def test_overlaps_count_prompts_and_show_the_closest() -> None:
    corpus = changed(
        changed(clean(), "off_train", LONG.format("wreck"), LONG.format("rocks")),
        "stress",
        LONG.format("wreck").upper() + "!",
        LONG.format("shore"),
    )
    found = {(one.part, one.other): one for one in overlaps(corpus)}
    stress = found["stress", "off_train"]
    assert (stress.prompts, stress.of) == (2, 320)
    assert stress.examples[0].similarity == 1.0
    assert (stress.examples[0].text, stress.examples[0].other) == (
        corpus.stress[0].prompt,
        corpus.off_train[0].prompt,
    )
    assert all(0.8 <= example.similarity < 1.0 for example in stress.examples[1:])
    assert found["off_train", "off_train"].prompts == found["stress", "stress"].prompts == 2
    assert [one.prompts for key, one in found.items() if "sealed" in key] == [0, 0, 0, 0]


def test_a_text_does_not_repeat_itself_but_its_copy_does() -> None:
    corpus = clean()
    twice = replace(corpus, documents=(*corpus.documents, replace(corpus.documents[0], id="again")))
    counts = [
        {(o.part, o.other): o.prompts for o in overlaps(c)}["documents", "documents"] for c in (corpus, twice)
    ]
    assert counts == [0, 2]


# ------------------------------------------------------------------------------------------------------- the report
def test_both_formats_say_the_same(look: Callable[..., Review]) -> None:
    found = look(FLAWS["near_duplicates"]())
    parsed = json.loads(to_json(found))
    assert parsed["schema"] == 1
    assert parsed["rows"] == found.rows
    assert [one["rule"] for one in parsed["findings"]] == ["near_duplicates"]
    table = to_table(found)
    assert table.startswith("model embedded, context of 512 tokens\n")
    assert "of 9 in the file" in table
    assert "38 for each of 8 slots" in table
    assert f"{parsed['lengths']['documents']['most']:,}" in table
    assert to_table(look(clean())).endswith("\nnothing to mend was found\n")


def test_hostile_prompts_do_no_harm_to_a_terminal(look: Callable[..., Review]) -> None:
    text = "\x1b[31m " + LONG.format("wreck")
    found = look(changed(changed(clean(), "stress", text + " \x1b]0;x\x07"), "off_train", text))
    assert "\x1b" not in to_table(found)
    assert "\x07" not in to_table(found)


def test_the_page_names_every_rule() -> None:
    page = (Path(__file__).parents[2] / "configs" / "OWN.md").read_text(encoding="utf-8")
    table = page[page.index("| finding |") :]
    assert set(FLAWS) == {
        rule for rule in re.findall(r"`(\w+)`", table) if rule not in {"on_gain", "on_gain_min"}
    }
