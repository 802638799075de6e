from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.schedule import topk_at
from cedkv.core.warn import ConstraintWarn, WarnState

SCHEDULE, MILESTONES = (32, 16, 8, 4), (0.0, 0.25, 0.6, 0.85)


def test_each_stage_begins_at_its_milestone():
    steps = [topk_at(step / 20, SCHEDULE, MILESTONES) for step in range(20)]
    assert steps == [32] * 5 + [16] * 7 + [8] * 5 + [4] * 3
    assert topk_at(1.0, SCHEDULE, MILESTONES) == 4


@given(st.floats(0, 1), st.floats(0, 1))
def test_k_never_grows(one, other):
    early, late = sorted((one, other))
    assert topk_at(early, SCHEDULE, MILESTONES) >= topk_at(late, SCHEDULE, MILESTONES)


@pytest.mark.parametrize(
    ("progress", "schedule", "milestones", "named"),
    [
        (0.5, (32, 16), (0.0,), "one milestone for each k"),
        (0.5, (), (), "one milestone for each k"),
        (0.5, (32, 16), (0.1, 0.5), "start at 0"),
        (0.5, (32, 16, 8), (0.0, 0.5, 0.5), "rise"),
        (1.1, (32,), (0.0,), "progress"),
        (-0.1, (32,), (0.0,), "progress"),
        (math.nan, (32,), (0.0,), "progress"),
    ],
)
def test_an_impossible_schedule_is_refused(progress, schedule, milestones, named):
    with pytest.raises(ValueError, match=named):
        topk_at(progress, schedule, milestones)


def watch(values: list[float], **rule: float) -> list[WarnState]:
    warn = ConstraintWarn(**{"limit": 0.05, "margin": 0.01, "patience": 3, **rule})
    states, state = [], WarnState()
    for value in values:
        state = warn.observe(state, value)
        states.append(state)
    return states


def test_it_triggers_on_the_third_tick_in_a_row_and_not_before():
    states = watch([0.07, 0.07, 0.05, 0.07, 0.07, 0.07, 0.07, 0.01])
    assert [state.consecutive for state in states] == [1, 2, 0, 1, 2, 3, 4, 0]
    assert [state.triggered for state in states] == [False] * 5 + [True, True, False]
    assert [state.onset for state in states] == [False] * 5 + [True, False, False]


def test_at_the_limit_plus_margin_nothing_is_violated():
    assert watch([0.05 + 0.01])[0].consecutive == 0
    assert watch([math.nextafter(0.05 + 0.01, 1)])[0].consecutive == 1


def test_nan_neither_proves_nor_clears():
    states = watch([0.07, 0.07, math.nan, 0.07, math.nan])
    assert [state.consecutive for state in states] == [1, 2, 2, 3, 3]
    assert [state.triggered for state in states] == [False, False, False, True, False]
    assert watch([math.inf])[0].consecutive == 1


@given(st.lists(st.floats(0, 0.2), max_size=40), st.integers(1, 5))
def test_it_triggers_exactly_after_patience_violations_in_a_row(values, patience):
    over = [value > 0.05 + 0.01 for value in values]
    expected = [i + 1 >= patience and all(over[i + 1 - patience : i + 1]) for i in range(len(values))]
    assert [state.triggered for state in watch(values, patience=patience)] == expected


@pytest.mark.parametrize(
    ("rule", "named"),
    [({"patience": 0}, "patience"), ({"limit": math.nan}, "limit"), ({"margin": math.inf}, "margin")],
)
def test_an_impossible_watch_is_refused(rule, named):
    with pytest.raises(ValueError, match=named):
        watch([], **rule)
