"""Teams: what is dealt, and what real processes exchange over gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.core.team import ALONE, LostProcessError, Team, bits
from cedkv.injection.storage import Room, gathered
from cedkv.train.launch import join


def member(rank: int, size: int) -> Team:
    team = Team()
    team.rank, team.size = rank, size
    return team


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 9))
def test_every_unit_is_dealt_once_and_nobody_gets_more_than_the_share_and_one_unit(costs, size):
    dealt = [member(rank, size).deal(costs) for rank in range(size)]
    assert sorted(unit for mine in dealt for unit in mine) == list(range(len(costs)))
    assert all(mine == sorted(mine) for mine in dealt)
    most = max((sum(costs[unit] for unit in mine) for mine in dealt), default=0.0)
    assert most <= sum(costs) / size + max(costs, default=0.0) + 1e-6


def test_one_process_alone_exchanges_nothing():
    x = torch.tensor([-0.0, 1.0])
    ALONE.merge(x)
    ALONE.check_equal([x], "x")
    assert x.tolist() == [0.0, 1.0]
    assert (ALONE.tell(b"a"), ALONE.gather(b"b"), ALONE.any(True), ALONE.any(False)) == (
        b"a",
        [b"b"],
        True,
        False,
    )


@given(st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.int64]), st.integers(0, 9))
def test_bits_are_a_view_of_the_tensor(dtype, count):
    x = torch.zeros(count, dtype=dtype)
    bits(x).fill_(-1 if bits(x).dtype is torch.int32 else 255)
    assert bool((x != 0).all())
    assert bits(x).numel() * bits(x).itemsize == x.numel() * x.itemsize


def test_a_tensor_in_pieces_is_refused():
    with pytest.raises(ValueError, match="in one piece"):
        bits(torch.zeros(4, 4).t())


# ------------------------------------------------------------------------------------------------------- real processes
def work(action: Callable[[Team], object], rank: int, size: int, port: int, answers) -> None:
    env = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= env
    torch.set_num_threads(1)
    try:
        answers.put((rank, action(join(os.environ))))
    except Exception as error:  # noqa: BLE001 - told to the test
        answers.put((rank, f"{type(error).__name__}: {error}"))


def together(action: Callable[[Team], object], size: int) -> list[object]:
    """What `action` gives in each of `size` processes of one team."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("spawn")
    answers = context.SimpleQueue()
    started = [context.Process(target=work, args=(action, rank, size, port, answers)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    found = dict(answers.get() for _ in range(size) if not answers.empty())
    return [found.get(rank) for rank in range(size)]


def exchange(team: Team) -> object:
    assert join(os.environ).rank == team.rank, "joining twice gives the same team"
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8):
        merged = torch.zeros(7, 3, dtype=dtype)
        for row in range(team.rank, 7, team.size):
            merged[row] = row + 1
        team.merge(merged)
        assert merged[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7], dtype
    special = torch.zeros(team.size, 3)
    special[team.rank] = torch.tensor([-0.0, float("nan"), -float("inf")])
    mine = bits(special[team.rank]).clone()
    empty = torch.zeros(0)
    team.merge(special, empty)
    assert all(torch.equal(bits(row.clone()), mine) for row in special), (
        "the sign of a zero, and a NaN's bits"
    )
    assert team.tell(b"first" if team.first else b"someone else") == b"first"
    assert team.tell(b"") == b""
    assert team.gather(b"x" * team.rank) == [b"x" * rank for rank in range(team.size)]
    assert team.any(team.rank == team.size - 1)
    assert not team.any(False)
    team.check_equal([torch.arange(5), torch.ones(2)], "the same")
    with pytest.raises(RuntimeError, match="the number of a process is not the same in all processes"):
        team.check_equal([torch.tensor([0.0, float(team.rank)])], "the number of a process")
    return "done"


def fill(team: Team) -> object:
    """Memory, memory that is common, and a file beyond the budget; every process sees what all of them wrote."""
    names = []
    for room in (Room(team=team), Room(gib=0, team=team)):
        x = room.empty((team.size, 4), torch.float32, torch.device("cpu"))
        x[team.rank] = team.rank + 1
        room.share([x])
        assert x[:, 0].tolist() == [rank + 1 for rank in range(team.size)]
        names.append(str(x.untyped_storage().filename))
    team.local_size = 1  # as on several machines
    room = Room(team=team)
    x = room.empty((team.size, 4), torch.float32, torch.device("cpu"))
    assert x.untyped_storage().filename is None
    x[team.rank] = team.rank + 1
    room.share([x])
    assert x[:, 0].tolist() == [rank + 1 for rank in range(team.size)]
    found = {n: torch.full((n + 1, 2), float(n)) for n in team.deal([1.0, 1.0])}
    rows = gathered(found, [1, 2], team, torch.float32, torch.device("cpu"))
    assert [row.tolist() for row in rows] == [[[0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
    return names


def leave_the_others(team: Team) -> object:
    if team.rank == 1:
        raise SystemExit(0)
    try:
        team.any(False)
    except LostProcessError as error:
        return str(error)
    return "nobody was missed"


def meet(team: Team) -> object:
    return [exchange(team), fill(team), leave_the_others(team)]


def test_real_processes_exchange_every_bit_fill_one_mapping_and_miss_who_is_gone():
    first, gone, last = together(meet, 3)
    assert gone is None
    assert first[0] == last[0] == "done"
    assert first[1] == last[1], "one mapping"
    in_memory, beyond = first[1]
    assert in_memory.startswith("/dev/shm/")  # noqa: S108
    assert not beyond.startswith("/dev/shm/")  # noqa: S108
    assert "process 0 of 3 waited for another one that is gone" in first[2]


@pytest.mark.parametrize("wanted", ["two", "0", "-1", ""])
def test_a_world_size_that_is_no_number_of_processes_is_refused(wanted):
    with pytest.raises(UserError, match="WORLD_SIZE is"):
        join({"WORLD_SIZE": wanted})


def test_without_a_launcher_there_is_one_process():
    assert join({}) is ALONE
    assert join({"WORLD_SIZE": "1"}) is ALONE
