from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.dual import DualRule, DualState

RULE = DualRule(
    eta=0.05, ema_beta=0.9, update_every=5, lambda_min=0.0, lambda_max=10.0, delta_clip=0.1, threshold=0.05
)
readings = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60)


@given(readings, st.floats(0, 10), st.floats(0, 100), st.floats(0, 0.99))
def test_lambda_stays_in_its_range_and_never_jumps(p99s, start, eta, beta):
    rule = DualRule(eta, beta, 1, 0.0, 10.0, 0.1, 0.05)
    state = DualState(start)
    for p99 in p99s:
        before, state = state, rule.update(state, p99)
        assert 0.0 <= state.lambda_off <= 10.0
        assert abs(state.lambda_off - before.lambda_off) <= 0.1 + 1e-12
        assert state.skipped == (not math.isfinite(p99))
        assert state.p99_ema is None or math.isfinite(state.p99_ema)
    assert state.skipped_total == sum(not math.isfinite(p99) for p99 in p99s)


@given(st.floats(0.0, 5.0))
def test_a_steady_violation_raises_lambda_and_steady_slack_lowers_it(p99):
    state = DualState(5.0)
    for _ in range(50):
        before, state = state, RULE.update(state, p99)
        if p99 > 0.05:
            assert state.lambda_off > before.lambda_off
        elif p99 < 0.05:
            assert state.lambda_off < before.lambda_off
        else:
            assert state.lambda_off == before.lambda_off


def test_a_reading_that_is_not_finite_changes_nothing_and_says_so():
    state = RULE.update(DualState(2.0), 0.2)
    for value in (math.nan, math.inf, -math.inf):
        skipped = RULE.update(state, value)
        assert (skipped.lambda_off, skipped.p99_ema) == (state.lambda_off, state.p99_ema)
        assert skipped.skipped
        assert skipped.delta == 0.0
    assert not RULE.update(skipped, 0.2).skipped


def test_updates_are_due_every_few_steps():
    assert [step for step in range(12) if RULE.due(step)] == [0, 5, 10]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ema_beta": 1.0}, "ema_beta"),
        ({"ema_beta": -0.1}, "ema_beta"),
        ({"update_every": 0}, "update_every"),
        ({"lambda_min": -1.0}, "lambda range"),
        ({"lambda_min": 11.0}, "lambda range"),
        ({"eta": -0.1}, "eta"),
        ({"delta_clip": -0.1}, "delta_clip"),
        ({"threshold": math.nan}, "threshold"),
        ({"lambda_max": math.inf}, "lambda_max"),
    ],
)
def test_an_impossible_rule_is_refused(change, named):
    fields = {name: getattr(RULE, name) for name in DualRule.__dataclass_fields__}
    with pytest.raises(ValueError, match=named):
        DualRule(**(fields | change))
