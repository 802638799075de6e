from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.data.records import OffPrompt, normalised
from cedkv.data.stress import distinct, split_off, take

prompts = st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=40).map(
    lambda texts: [OffPrompt(f"id-{text}", text, "family") for text in texts]
)


def contents(rows: tuple[OffPrompt, ...]) -> list[str]:
    return [normalised(row.prompt) for row in rows]


@given(prompts, st.integers(0, 2**32 - 1), st.data())
def test_the_sets_are_distinct_disjoint_and_of_the_sizes_asked_for(
    rows: list[OffPrompt], seed: int, data: st.DataObject
) -> None:
    count = len({normalised(row.prompt) for row in rows})
    stress = data.draw(st.integers(0, count))
    train = data.draw(st.integers(0, count - stress))
    sealed = data.draw(st.integers(0, 50))
    sets = split_off(rows, train=train, stress=stress, sealed=sealed, seed=seed)
    assert [len(part) for part in sets] == [train, stress, min(sealed, count - stress - train)]
    together = [content for part in sets for content in contents(part)]
    assert len(together) == len(set(together))


@given(prompts, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_order_of_the_rows(
    rows: list[OffPrompt], seed: int, rng: random.Random
) -> None:
    size = len(distinct(rows))
    shuffled = rng.sample(rows, len(rows))
    sizes = {"train": size // 3, "stress": size // 2, "sealed": size, "seed": seed}
    assert split_off(rows, **sizes) == split_off(shuffled, **sizes)


@given(prompts, st.integers(0, 2**32 - 1), st.data())
def test_the_stress_set_does_not_move_with_the_other_sizes(
    rows: list[OffPrompt], seed: int, data: st.DataObject
) -> None:
    size = len(distinct(rows))
    stress = data.draw(st.integers(0, size))
    train = data.draw(st.integers(0, size - stress))
    first = split_off(rows, train=train, stress=stress, sealed=7, seed=seed)[1]
    assert first == split_off(rows, train=0, stress=stress, sealed=0, seed=seed)[1]


def test_seeds_draw_different_sets_and_each_prompt_about_equally_often() -> None:
    rows = [OffPrompt(str(n), f"prompt number {n}", "f") for n in range(40)]
    draws = [split_off(rows, train=0, stress=10, sealed=0, seed=seed)[1] for seed in range(400)]
    assert len({frozenset(row.id for row in draw) for draw in draws}) > 390
    times = [sum(row in draw for draw in draws) for row in rows]
    # 400 draws of 1 in 4: mean 100, standard deviation 8.7; five of them allowed.
    assert min(times) > 56
    assert max(times) < 144


def test_repetitions_are_used_once_and_the_same_one_is_kept() -> None:
    rows = [
        OffPrompt("b", "Two  plus two", "f"),
        OffPrompt("a", "two plus two ", "f"),
        OffPrompt("c", "x", "f"),
    ]
    assert distinct(rows) == distinct(rows[::-1])
    assert [row.id for row in distinct(rows)] == ["b", "c"]


def test_too_few_distinct_prompts_say_the_counts() -> None:
    rows = [OffPrompt("1", "a b", "f"), OffPrompt("2", "A  B", "f"), OffPrompt("3", "c", "f")]
    with pytest.raises(
        UserError, match=r"2 distinct OFF prompts of 3 given, but 3 are needed \(2 .* and 1 .*lower"
    ):
        split_off(rows, train=1, stress=2, sealed=5, seed=0)


def test_a_set_that_the_file_assigns_must_be_large_enough() -> None:
    with pytest.raises(UserError, match=r"1 distinct .*split 'stress', but some\.key asks for 2"):
        take([OffPrompt("1", "a", "f")], 2, name="stress", key="some.key", seed=0)


def test_the_draw_of_a_seed_never_changes() -> None:
    rows = [OffPrompt(str(n), f"p {n}", "f") for n in range(50)]
    _, stress, _ = split_off(rows, train=5, stress=5, sealed=0, seed=3407)
    assert [row.id for row in stress] == ["24", "26", "18", "15", "19"]


def test_the_draw_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from cedkv.data.records import OffPrompt\n"
        "from cedkv.data.stress import split_off\n"
        "rows = [OffPrompt(str(n), f'p {n}', 'f') for n in range(50)]\n"
        "print(*(row.id for row in split_off(rows, train=5, stress=5, sealed=0, seed=3407)[1]))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    rows = [OffPrompt(str(n), f"p {n}", "f") for n in range(50)]
    here = " ".join(row.id for row in split_off(rows, train=5, stress=5, sealed=0, seed=3407)[1])
    assert runs == {f"{here}\n"}
