"""The generated world: what its documents state, what its questions ask, and which sets share nothing."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from cedkv.config import load
from cedkv.core.errors import UserError
from cedkv.data import lexicon, skills, world
from cedkv.data.build import build_corpus
from cedkv.data.records import Corpus, Document, hashes, normalised

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = {"near_miss", *skills.SKILLS}


def corpus(name: str = "smoke", *overrides: str) -> Corpus:
    return build_corpus(load(CONFIGS / f"{name}.yaml", overrides, env={}).config)


@pytest.fixture(scope="module")
def base() -> Corpus:
    """What `base.yaml` trains on: 64 documents, 2048 stress prompts."""
    return corpus("base")


def stated(document: Document) -> list[world.Fact]:
    """The facts of a document, read back from the words its spans mark: three a statement, in the order of the text."""
    marks = [(document.text[s.start : s.stop], s.role) for s in sorted(document.spans, key=lambda s: s.start)]
    facts = []
    for start in range(0, len(marks), 3):
        words = marks[start : start + 3]
        (value,) = [word for word, role in words if role == "value"]
        (entity,) = [word for word, role in words if role == "key" and word in lexicon.NAMES]
        (attribute,) = [word for word, role in words if role == "key" and word in lexicon.ATTRIBUTES]
        facts.append(world.Fact(entity, attribute, value))
    return facts


def asked(prompt: str) -> tuple[str, str]:
    """The (entity, attribute) a question is about, read back from its words."""
    words = re.findall(r"\w+", prompt)
    (entity,) = {word for word in words if word in lexicon.NAMES}
    (attribute,) = {word for word in words if word in lexicon.ATTRIBUTES}
    return entity, attribute


# ------------------------------------------------------------------------------------------------------ determinism
def test_a_seed_gives_the_same_corpus_in_every_process():
    code = (
        "import json, os; from cedkv.config import load; from cedkv.data.build import build_corpus\n"
        "from cedkv.data.records import hashes\n"
        f"print(json.dumps(hashes(build_corpus(load({str(CONFIGS / 'smoke.yaml')!r}, env={{}}).config))))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert str(hashes(corpus())).replace("'", '"') == outputs.pop().strip()


def test_another_seed_gives_other_documents_and_another_stress_seed_other_stress_prompts_only():
    here, elsewhere = corpus(), corpus("smoke", "data.seed=1")
    assert {d.text for d in here.documents}.isdisjoint(d.text for d in elsewhere.documents)
    stress = corpus("smoke", "phase3.eval.off_fixed_stress.seed=1")
    assert stress.documents == here.documents
    assert (stress.on_train, stress.on_eval) == (here.on_train, here.on_eval)
    shared = {p.prompt for p in stress.stress} & {p.prompt for p in here.stress}
    assert len(shared) < len(here.stress) // 4


@pytest.mark.parametrize(
    "override",
    [
        "phase3.eval.off_samples=64",
        "phase3.eval.off_sealed.size=512",
        "phase3.eval.off_sealed.size=0",
        "data.on_train_prompts_per_fact=7",
        "data.on_eval_prompts_per_fact=5",
    ],
)
def test_the_documents_and_the_stress_set_do_not_move_with_the_size_of_another_set(override):
    here, other = corpus(), corpus("smoke", override)
    assert other.stress == here.stress
    assert other.documents == here.documents


def test_more_documents_begin_with_the_same_documents():
    assert corpus("smoke", "phase3.eval.on_samples=11").documents[:8] == corpus().documents


# -------------------------------------------------------------------------------------------------------- documents
def test_the_spans_mark_the_words_of_every_fact(base):
    for document in base.documents:
        facts = stated(document)
        assert len(facts) == 8
        assert all(fact.value in lexicon.ATTRIBUTES[fact.attribute] for fact in facts)
        for span in document.spans:
            assert not document.text[span.start - 1 : span.start].isalnum()
            assert not document.text[span.stop : span.stop + 1].isalnum()


def test_no_two_facts_of_the_bank_are_about_the_same_pair(base):
    pairs = Counter(fact.pair for document in base.documents for fact in stated(document))
    assert len(pairs) == 64 * 8
    assert max(pairs.values()) == 1


def test_most_values_are_followed_by_a_word_and_not_by_a_delimiter(base):
    """Else a reader could learn to carry every fact on the delimiter, and the delimiter cap would take it away."""
    behind = [
        d.text[s.stop : s.stop + 2].strip()[:1] for d in base.documents for s in d.spans if s.role == "value"
    ]
    share = sum(not char.isalpha() for char in behind) / len(behind)
    assert len(behind) == 64 * 8
    assert 0.2 < share < 0.4


def test_documents_of_the_largest_size_hold_all_their_facts():
    for document in corpus("smoke", "data.facts_per_document=24", "data.free_sentences=0").documents:
        assert len({fact.pair for fact in stated(document)}) == 24
        assert document.text.count("  ") == 0


def test_a_crowded_world_still_states_every_pair_once():
    full = corpus("smoke", "phase3.eval.on_samples=50", "data.facts_per_document=24")
    pairs = [fact.pair for document in full.documents for fact in stated(document)]
    assert len(pairs) == len(set(pairs)) == 1200


def test_facts_are_found_when_few_pairs_are_left():
    every = [(name, attribute) for name in lexicon.NAMES for attribute in lexicon.ATTRIBUTES]
    left = {every[5], every[700], every[-1]}
    drawn = world.draw_facts(random.Random(0), 3, set(every) - left)
    assert {fact.pair for fact in drawn} == left


# ------------------------------------------------------------------------------------------------------- ON prompts
def test_training_and_evaluation_ask_in_different_phrasings():
    assert set(world.ON_TRAIN_CORES).isdisjoint(world.EVAL_CORES)
    assert set(world.TRAIN_CORES) < set(world.ON_TRAIN_CORES)
    written = corpus()
    train, held_out = (_phrasings(prompts) for prompts in (written.on_train, written.on_eval))
    assert train
    assert held_out
    assert train.isdisjoint(held_out)


def _phrasings(prompts) -> set[str]:
    """Questions with the words they ask about blanked out, and without head and tail."""
    found = set()
    for prompt in prompts:
        entity, attribute = asked(prompt.prompt)
        text = re.sub(rf"\b{entity}\b", "N", re.sub(rf"\b{attribute}\b", "A", prompt.prompt))
        head = max((h for h in world.HEADS if text.startswith(h)), key=len)
        tail = next(t for t in world.TAILS if text.endswith(t))
        found.add(text[len(head) : -len(tail)])
    return found


def test_every_fact_is_asked_as_often_as_configured_and_answered_by_its_own_document(base):
    answers = {d.id: {fact.pair: f" {fact.value}" for fact in stated(d)} for d in base.documents}
    for prompts, per_fact in ((base.on_train, 12), (base.on_eval, 1)):
        counts = Counter((p.document, asked(p.prompt)) for p in prompts)
        assert len(counts) == 64 * 8
        assert set(counts.values()) == {per_fact}
        assert all(answers[p.document][asked(p.prompt)] == p.answer for p in prompts)
        assert len({(p.document, normalised(p.prompt)) for p in prompts}) == len(prompts)


def test_all_phrasings_can_be_asked_for_and_no_more():
    everything = corpus("smoke", "phase3.eval.on_samples=1", "data.on_eval_prompts_per_fact=54")
    assert len({p.prompt for p in everything.on_eval}) == 8 * 54
    with pytest.raises(UserError, match=r"data\.on_eval_prompts_per_fact is 55, but there are 54 phrasings"):
        corpus("smoke", "data.on_eval_prompts_per_fact=55")


# ------------------------------------------------------------------------------------------------------ OFF prompts
def test_no_document_answers_a_near_miss_and_some_document_nearly_does(base):
    facts = [fact for document in base.documents for fact in stated(document)]
    pairs = {fact.pair for fact in facts}
    entities, attributes = {fact.entity for fact in facts}, {fact.attribute for fact in facts}
    for prompts in (base.stress, base.off_train, base.sealed):
        near = [asked(p.prompt) for p in prompts if p.family == "near_miss"]
        assert len(near) == len(prompts) // 4
        assert pairs.isdisjoint(near)
        assert all(entity in entities or attribute in attributes for entity, attribute in near)


def test_the_off_sets_share_no_prompt_with_each_other_or_with_an_on_prompt(base):
    sets = [base.off_train, base.stress, base.sealed, base.on_train + base.on_eval]
    contents = [{normalised(row.prompt) for row in rows} for rows in sets]
    assert len(set().union(*contents)) == sum(map(len, contents))
    assert [len(c) for c in contents[:3]] == [32768, 2048, 8192]


def test_every_family_is_in_every_off_set(base):
    small = corpus("base", "phase3.eval.off_samples=256", "phase3.loss.off.hard_pool_size=64")
    for prompts in (base.stress, small.off_train, small.sealed):
        counts = Counter(p.family for p in prompts)
        assert set(counts) == FAMILIES
        assert min(counts.values()) >= len(prompts) // 20


def test_a_large_training_set_leaves_the_sealed_set_its_half_of_a_small_family(base):
    """32,768 training prompts could take every sum there is: the exam would have none."""
    train, sealed = (Counter(p.family for p in rows) for rows in (base.off_train, base.sealed))
    assert set(train) == set(sealed) == FAMILIES
    assert train["near_miss"] == 4 * sealed["near_miss"] == len(base.off_train) // 4
    short = {family for family, count in train.items() if count < len(base.off_train) // 20}
    assert short == {"sum", "world", "opposite", "count"}
    assert all(sealed[family] >= 0.95 * min(train[family], sealed["reverse"]) for family in short)
    asked = {normalised(p.prompt) for p in base.off_train + base.stress + base.sealed}
    rng = random.Random(0)
    for family in short:  # next to nothing of it is left over
        assert sum(normalised(skills.SKILLS[family](rng).prompt) in asked for _ in range(1000)) > 980


def test_skills_state_their_answers():
    rng = random.Random(0)
    for family, skill in skills.SKILLS.items():
        items = [skill(rng) for _ in range(200)]
        assert {item.family for item in items} == {family}
        assert all((item.answer == "") == (family == "story") for item in items)
        assert not any(item.prompt.endswith(" ") or item.prompt.startswith(" ") for item in items)
    for item in (skills.SKILLS["sum"](rng) for _ in range(50)):
        assert sum(map(int, re.findall(r"\d+", item.prompt))) == int(item.answer)
    for item in (skills.SKILLS["reverse"](rng) for _ in range(50)):
        words = item.prompt.partition(":")[2].removesuffix(" ->").split()
        assert item.answer.split() == words[::-1]
    for item in (skills.SKILLS["count"](rng) for _ in range(200)):
        run = [*item.prompt.partition(":")[2].removesuffix(" ->").split(), item.answer.strip()]
        order = lexicon.NUMBER_WORDS
        numbers = [order.index(word) if word in order else int(word) for word in run]
        assert len({b - a for a, b in pairwise(numbers)}) == 1


# -------------------------------------------------------------------------------------------- more than the world has
@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "phase3.eval.on_samples=151",
            "on_samples = 151 documents of data.facts_per_document = 8 facts need 1208",
        ),
        ("phase3.eval.off_fixed_stress.size=10000000", "phase3.eval.off_fixed_stress.size is 10000000"),
        ("phase3.eval.off_sealed.size=100000000", "phase3.eval.off_sealed.size is 100000000"),
        ("data.on_train_prompts_per_fact=397", "there are 396 phrasings of a question: lower it"),
    ],
)
def test_more_than_the_world_has_is_refused_at_once_and_by_the_key(override, says):
    with pytest.raises(UserError, match=re.escape(says)):
        corpus("smoke", override)
