"""Parts of the wall time: they add up, and no second counts twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv import ledger
from cedkv.train.clock import Clock, TimedLog
from tests.small_runs import Recorder


class Hands:
    """A clock's hands, moved by the test."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_an_inner_part_interrupts_the_outer():
    hands = Hands()
    clock = Clock(hands)
    hands.at += 1  # before any part
    with clock.part("train"):
        hands.at += 2
        with clock.part("tick"):
            hands.at += 3
            with clock.part("log"):
                hands.at += 4
            hands.at += 5
        with clock.part("train"):
            hands.at += 6
        hands.at += 7
    assert clock.seconds == {"train": 15, "tick": 8, "log": 4}
    assert clock.metrics() == {
        "perf/seconds_train": 15,
        "perf/seconds_tick": 8,
        "perf/seconds_log": 4,
        ledger.SECONDS_TOTAL: 28,
    }
    assert clock.split() == "28 s: train 15, tick 8, log 4"


def test_a_part_that_is_going_on_counts_so_far_and_one_that_fails_is_closed():
    hands = Hands()
    clock = Clock(hands)

    def fail():
        with clock.part("train"), clock.part("tick"):
            hands.at += 2
            assert clock.seconds["tick"] == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    hands.at += 0.44
    with clock.part("load"):
        hands.at += 0.04
    assert clock.split() == "2.5 s: tick 2.0"
    assert clock.seconds == pytest.approx({"load": 0.04, "train": 0, "tick": 2})


@given(st.lists(st.tuples(st.sampled_from(ledger.PARTS), st.integers(0, 9), st.booleans()), max_size=30))
def test_whatever_the_nesting_parts_never_exceed_the_total(entries):
    """Each entry opens a part, lets time pass, and closes it or leaves it open around the next."""
    hands = Hands()
    clock = Clock(hands)
    passed, still = 0, []
    for name, seconds, closed in entries:
        part = clock.part(name)
        part.__enter__()
        hands.at += seconds
        passed += seconds
        if closed:
            part.__exit__(None, None, None)
        else:
            still.append(part)
    for part in reversed(still):
        part.__exit__(None, None, None)
    assert sum(clock.seconds.values()) == passed == clock.metrics()[ledger.SECONDS_TOTAL]


def test_a_part_that_the_log_does_not_know_is_refused():
    with pytest.raises(ValueError, match="'lunch' is not one of"), Clock().part("lunch"):
        pass


def test_what_the_log_takes_is_no_part_of_what_logs():
    hands, log = Hands(), Recorder()
    clock = Clock(hands)
    seen, log.log_metrics = log.log_metrics, lambda *entry: setattr(hands, "at", hands.at + 3) or seen(*entry)
    with clock.part("train"):
        hands.at += 1
        TimedLog(log, clock).log_metrics({"phase3_loss": 0.5}, 7)
    assert clock.seconds == {"train": 1, "log": 3}
    assert log.of("phase3_loss") == [(7, 0.5)]
