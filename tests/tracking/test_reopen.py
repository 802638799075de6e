"""Which points a resumed run logs again."""

from __future__ import annotations

import math

from cedkv.tracking.reopen import Before


def test_points_that_the_store_has_are_left_out_as_often_as_it_has_them():
    before = Before()
    for value in (0.5, 0.5, math.nan):
        before.add("p99", 3, value)
    assert [before.is_new("p99", 3, value) for value in (0.5, math.nan, 0.5, 0.5)] == [
        False,
        False,
        False,
        True,
    ]
    assert before.is_new("p99", 4, 0.5)
    assert before.is_new("loss", 3, 0.5)


def test_from_another_value_on_everything_is_logged_so_that_the_last_one_counts():
    before = Before()
    for value in (1.0, 2.0):
        before.add("p99", 3, value)
    assert [before.is_new("p99", 3, value) for value in (1.0000000000000002, 2.0)] == [True, True]


def test_how_long_something_took_is_logged_once_whatever_it_was():
    before = Before()
    before.add("perf/steps_per_second", 3, 1.0)
    assert [before.is_new("perf/steps_per_second", 3, value) for value in (9.0, 8.0)] == [False, True]
