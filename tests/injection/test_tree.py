"""Prompts packed as trees: every prompt whole, nothing twice, and each node sees its own path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.injection.storage import GIB, Room, picked
from cedkv.injection.tree import batches, grow, pack, partition, plant

# Two tokens only: beginnings are shared all the time, and prompts are beginnings of others.
PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


def beginnings(prompts):
    return {prompt[: n + 1] for prompt in prompts for n in range(len(prompt))}


@given(PROMPTS)
def test_a_forest_has_a_node_for_every_beginning(prompts):
    forest = grow(prompts)
    assert len(forest.tokens) == len(forest.depths) == len(beginnings(prompts))
    for prompt, path in zip(prompts, forest.paths, strict=True):
        assert tuple(forest.tokens[list(path)].tolist()) == prompt
        assert forest.depths[list(path)].tolist() == list(range(len(prompt)))


@given(PROMPTS, st.integers(1, 12), st.integers(1, 5), st.floats(0, 100))
def test_groups_hold_every_prompt_once_and_no_more_than_they_may(prompts, nodes, members, worth):
    groups = partition(prompts, nodes=nodes, members=members, worth=worth)
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        assert len(group) <= members
        assert len(group) == 1 or len(beginnings([prompts[i] for i in group])) <= nodes


def test_prompts_that_share_nothing_or_too_little_stand_alone():
    long, other = tuple(range(100)), (0, *range(200, 299))
    assert partition([(1, 2), (3, 4)], nodes=64, members=9, worth=1e9) == [[0], [1]]
    assert partition([long, other], nodes=500, members=9, worth=100.0) == [
        [0],
        [1],
    ]  # 2 * 99 * 99 pairs for one node
    assert partition([long, other], nodes=500, members=9, worth=2e4) == [[0, 1]]
    assert partition([long, long], nodes=500, members=9, worth=1.0) == [[0, 1]]


@given(PROMPTS, st.data())
def test_a_packed_node_sees_its_path_and_nothing_else(prompts, data):
    keep = [data.draw(st.integers(1, len(prompt))) for prompt in prompts]
    forest = grow(prompts)
    groups = partition(prompts, nodes=8, members=4, worth=100.0)
    trees = [plant(g, [forest.paths[i] for i in g], [keep[i] for i in g]) for g in groups]
    packed = pack(trees, forest.depths, torch.device("cpu"))
    ends: dict[int, list[int]] = {}
    for member, row, end in zip(*(x.tolist() for x in (packed.member, packed.row, packed.end)), strict=True):
        seen = packed.visible[row, packed.ends[row, end]]
        path = packed.nodes[row][seen]
        assert packed.depths[row][seen].tolist() == list(range(len(path)))
        ends.setdefault(member, []).append(len(path))
        assert tuple(path.tolist()) == forest.paths[member][: len(path)]
    assert ends.keys() == set(range(len(prompts)))
    for member, lengths in ends.items():  # the last positions, in their order
        size = len(prompts[member])
        assert lengths == list(range(size - keep[member] + 1, size + 1))
    for row, tree in enumerate(trees):
        assert len(set(tree.ends)) == len(tree.ends)
        assert (packed.visible[row].diagonal()).all()
        used = packed.nodes[row][: len(tree.nodes)]
        assert len(used.unique()) == len(used) == len(beginnings([prompts[i] for i in tree.members]))


@given(PROMPTS, st.integers(1, 20), st.integers(1, 4), st.sampled_from([1.0, 1.5]))
def test_batches_hold_every_tree_once_and_are_not_too_large(prompts, rows, states, padding):
    forest = grow(prompts)
    trees = [plant([i], [path], [1]) for i, path in enumerate(forest.paths)]
    found = list(batches(trees, rows=rows, states=states, padding=padding))
    assert sorted(tree.members[0] for batch in found for tree in batch) == list(range(len(prompts)))
    for batch in found:
        sizes = [len(tree.nodes) for tree in batch]
        assert len(batch) == 1 or len(batch) * states <= rows
        assert max(sizes) <= padding * min(sizes)


@pytest.mark.parametrize("window", [1, 2, 3, None])
def test_a_window_counts_along_the_path(window):
    forest = grow([(1, 2, 3, 4), (1, 2, 9)])
    packed = pack([plant([0, 1], forest.paths, [1, 1])], forest.depths, torch.device("cpu"))
    seen = packed.windowed(window)[0]
    far = window or 4
    assert packed.nodes[0][seen[3]].tolist() == [0, 1, 2, 3][-far:]
    assert packed.nodes[0][seen[4]].tolist() == [0, 1, 4][-far:]


# ------------------------------------------------------------------------------------------------------------ storage
def test_what_the_budget_has_no_room_for_lies_in_a_file_that_nobody_sees(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    room = Room(gib=800 / GIB)
    cpu = torch.device("cpu")
    first, second, third = (room.empty((10, n), torch.float32, cpu) for n in (15, 10, 5))
    assert [x.untyped_storage().filename is None for x in (first, second, third)] == [True, False, True]
    assert room.left == 0
    second.copy_(torch.arange(100.0).view(10, 10))
    assert picked(second, torch.tensor([[3, 0], [9, 3]]))[1, 0].tolist() == list(range(90, 100))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_full_is_an_error_that_says_so(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    from cedkv.core.errors import UserError

    with pytest.raises(UserError, match=r"no room for 400 bytes .* phase3\.eval\.trunk_memory_gib"):
        Room(gib=0).empty((10, 10), torch.float32, torch.device("cpu"))
