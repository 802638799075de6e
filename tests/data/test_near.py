"""Near duplicates, against the Jaccard index of every pair."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cedkv.data.near import THRESHOLD, Near, near_duplicates, occurs, words

word = st.sampled_from("a b c d e f g".split())
long_text = st.lists(word, min_size=8, max_size=24).map(" ".join)


@st.composite
def changed(draw: st.DrawFn) -> list[str]:
    """Texts, and copies of them with one word changed, dropped or added: many are alike."""
    texts = draw(st.lists(st.one_of(st.lists(word, max_size=4).map(" ".join), long_text), max_size=6))
    for text in list(texts):
        parts = text.split()
        place = draw(st.integers(0, len(parts)))
        texts.append(" ".join([*parts[:place], *draw(st.lists(word, max_size=2)), *parts[place + 1 :]]))
    return texts


def pairs_of(text: str) -> set[tuple[str, str]]:
    """Neighbouring words of a text of plain words, its ends included; written again, for the test."""
    parts = ["<", *text.split(), ">"]
    return {(parts[i], parts[i + 1]) for i in range(len(parts) - 1)}


def alike(near: Near) -> dict[tuple[int, int], float]:
    """All pairs of texts that are alike, those of one group included."""
    group = near.group.tolist()
    told = dict(zip(zip(near.left.tolist(), near.right.tolist(), strict=True), near.similarity, strict=True))
    assert all(left < right for left, right in told)
    return {
        (i, j): 1.0 if group[i] == group[j] else told[tuple(sorted((group[i], group[j])))]
        for i in range(len(group))
        for j in range(i + 1, len(group))
        if group[i] == group[j] or tuple(sorted((group[i], group[j]))) in told
    }


@given(changed())
@example(["", "", "a"])
@example([])
def test_all_pairs_over_the_threshold_are_found_and_no_others(texts: list[str]) -> None:
    found = alike(near_duplicates(texts))
    wanted = {}
    for i, left in enumerate(map(pairs_of, texts)):
        for j in range(i + 1, len(texts)):
            right = pairs_of(texts[j])
            index = len(left & right) / len(left | right)
            if index >= THRESHOLD:
                wanted[i, j] = index
    assert found == pytest.approx(wanted)


def test_texts_of_many_blocks_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        f"the keeper of light number {n} writes down every ship that passes the rocks in the long nights of winter"
        for n in range(40)
    ]
    texts += [text.replace("ship", "boat") for text in texts]
    whole = alike(near_duplicates(texts))
    monkeypatch.setattr("cedkv.data.near._ROWS", 7)
    monkeypatch.setattr("cedkv.data.near._PAIRS", 5)
    assert alike(near_duplicates(texts)) == whole
    assert whole


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("The harbour opens at 7.", "the HARBOUR opens, at 7", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("Mara's dog is called", "Mara's cat is called", False),
        ("Grüße aus Köln", "gru\u0308ße aus ko\u0308ln", True),
        ("港は七時に開く", "港は八時に開く", False),
    ],
)
def test_what_counts_as_the_same_words(left: str, right: str, same: bool) -> None:
    near = near_duplicates([left, right])
    assert (near.group[0] == near.group[1]) == same
    assert not near.left.size


def test_one_word_of_many_makes_a_near_duplicate() -> None:
    text = "when the tide is low the keeper of the light walks out to the wreck and counts what the sea has left there"
    near = near_duplicates([text, text.replace("wreck", "rocks"), " ".join(reversed(text.split()))])
    assert alike(near).keys() == {(0, 1)}


@given(st.lists(word, max_size=6), st.lists(word, min_size=1, max_size=3))
def test_a_part_occurs_as_whole_words_in_order(text: list[str], part: list[str]) -> None:
    windows = [text[i : i + len(part)] for i in range(len(text) + 1)]
    assert occurs(" ".join(part), " ".join(text)) == (part in windows)


def test_a_part_of_a_word_does_not_occur() -> None:
    assert not occurs("7", "It opens at 17.")
    assert occurs("at 17", "It opens at 17.")
    assert words("“7:30”, they're") == ["7", "30", "they", "re"]
