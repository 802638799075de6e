"""What stays outside the bank, and the OFF prompts of a project."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.data.own.off import NEAR_SHARE, Stated, divide, off_rows
from cedkv.data.own.project import SPLITS, Sizes
from cedkv.data.own.sources import Piece
from cedkv.data.records import Document, OffPrompt, normalised
from cedkv.data.skills import SKILLS

SIZES = Sizes(train=60, stress=40, sealed=20)


def pieces(sources: int, each: int = 1) -> list[Piece]:
    """Documents that have nothing to do with each other."""
    return [
        Piece(Document(f"s{s}#{n}", " ".join(f"w{s}x{n}x{i}" for i in range(12))), f"s{s}")
        for s in range(sources)
        for n in range(each)
    ]


# -------------------------------------------------------------------------------------------- which documents stay out
@given(sources=st.integers(4, 20), each=st.integers(1, 4), share=st.floats(0.05, 0.6), seed=st.integers(0, 9))
def test_no_document_serves_two_splits_and_none_is_lost(
    sources: int, each: int, share: float, seed: int
) -> None:
    given_ = pieces(sources, each)
    found = divide(given_, share, seed)
    again = divide(given_[::-1], share, seed)
    assert {document.id for document in again.bank} == {document.id for document in found.bank}
    ids = [document.id for document in found.all]
    assert sorted(ids) == sorted(piece.document.id for piece in given_)
    assert found.bank
    assert all(found.outside[split] for split in SPLITS)
    if sources >= 8:  # then sources stay whole
        side = {d.id: name for name, part in [("bank", found.bank), *found.outside.items()] for d in part}
        homes = Counter(source for source, _ in {(p.source, side[p.document.id]) for p in given_})
        assert set(homes.values()) == {1}


def test_documents_that_nearly_repeat_each_other_stay_together() -> None:
    text = "when the tide is low the keeper of the light walks out to the wreck and counts what the sea has left {}"
    twins = [
        Piece(Document(f"t{n}", text.format(end)), f"t{n}") for n, end in enumerate(("there", "here", "us"))
    ]
    for seed in range(12):
        found = divide([*pieces(9), *twins], 0.4, seed)
        parts = [found.bank, *found.outside.values()]
        assert [n for part in parts if (n := sum(d.id.startswith("t") for d in part))] == [3]


def test_without_a_share_all_documents_are_in_the_bank() -> None:
    found = divide(pieces(3), 0.0, 1)
    assert ([d.id for d in found.bank], any(found.outside.values())) == (["s0#0", "s1#0", "s2#0"], False)


def test_too_few_documents_to_keep_some_outside() -> None:
    with pytest.raises(UserError, match=r"--holdout 0\.2 of 3 documents that differ: 3 would stay outside"):
        divide(pieces(3), 0.2, 1)


# --------------------------------------------------------------------------------------------------- what may be OFF
@pytest.mark.parametrize(
    ("prompt", "answer", "may"),
    [
        ("The harbour opens at", " 7", True),
        ("When does the harbour open? At", " 7", False),  # by words: `open` is not `opens`
        ("The museum opens at", " 7", False),
        ("The harbour opens at", " 9", False),
        ("What is it?", "", True),  # asks nothing in particular
        ("Mara's dog is called", " Bruno", True),
        ("Mara's dog opens at", " 7", False),  # two documents are no document
    ],
)
def test_what_one_document_states_it_may_answer(prompt: str, answer: str, may: bool) -> None:
    bank = [Document("a", "The harbour opens at 7."), Document("b", "Mara's dog is called Bruno.")]
    assert Stated(bank).may_answer(prompt, answer) == may


# -------------------------------------------------------------------------------------------------------- OFF prompts
def near(count: int) -> dict[str, list[OffPrompt]]:
    """As many in every split; the first of each split is the same."""
    return {
        split: [
            OffPrompt("near/0", "The same of all is", "near/cloze"),
            *(
                OffPrompt(f"near/{split}{n}", f"In {split} the {n}th is", "near/cloze")
                for n in range(1, count)
            ),
        ]
        for split in SPLITS
    }


@pytest.mark.parametrize("count", [3, 100])
def test_sets_have_their_sizes_and_share_no_prompt(count: int) -> None:
    made = off_rows(SIZES, near(count), SKILLS, seed=1)
    assert made == off_rows(SIZES, near(count), SKILLS, seed=1)
    rows = [(split, row) for split in SPLITS for row in getattr(made, split)]
    assert Counter(split for split, _ in rows) == {"train": 60, "stress": 40, "sealed": 20}
    assert len({normalised(row.prompt) for _, row in rows}) == len(rows) == len({row.id for _, row in rows})
    for split in SPLITS:
        taken = [row for row in getattr(made, split) if row.family == "near/cloze"]
        assert len(taken) == min(NEAR_SHARE * SIZES.of(split), count - (split != "train" and count == 3))
        assert set(taken) <= set(near(count)[split])


def test_templates_mix_alike_in_every_split() -> None:
    made = off_rows(Sizes(700, 700, 700), {}, SKILLS, seed=1)
    for split in SPLITS:
        counts = Counter(row.family for row in getattr(made, split))
        assert set(counts) == set(SKILLS)
        assert min(counts.values()) > 60


def test_what_a_document_may_answer_is_left_out_and_the_form_goes_around_the_rest() -> None:
    def barred(prompt: str, answer: str) -> bool:
        return "plus" in prompt or answer.endswith("3")

    made = off_rows(SIZES, {}, SKILLS, seed=1, barred=barred, form=lambda prompt: f"<{prompt}>")
    prompts = [row.prompt for split in SPLITS for row in getattr(made, split)]
    assert all(prompt.startswith("<") and prompt.endswith(">") for prompt in prompts)
    assert not any("plus" in prompt for prompt in prompts)


def test_templates_that_run_dry_are_a_mistake() -> None:
    with pytest.raises(UserError, match="120 OFF prompts are wanted, but templates make 0"):
        off_rows(SIZES, {}, SKILLS, seed=1, barred=lambda _prompt, _answer: True)
