"""What a run is worth to a study, against hand-made cases and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.tuner.score import Score, is_contender, noise, score, together
from cedkv.tuner.spec import Spec
from cedkv.tuner.studies import order

SPEC = Spec.model_validate(
    {
        "space": {"phase3.train.lr": {"low": 0.1, "high": 1.0}},
        "objective": {"dual/lambda_std": 1.0, "off_delta_p99_stress": 10.0},
        "constraints": {
            "on_gain": {"drop": 0.04},
            "off_delta_p99_stress": {"most": "phase3.thresholds.off_delta_p99_max"},
            "dual/tracking": {"least": 0.01},
        },
    }
)
CONFIG = {"phase3": {"thresholds": {"off_delta_p99_max": 0.05}}}
GOOD = {"dual/lambda_std": 0.2, "off_delta_p99_stress": 0.03, "on_gain": 0.96, "dual/tracking": 0.02}
BASELINE = {"on_gain": 0.99}


def of(**changed: float | None) -> Score:
    values = {**GOOD, **{name.replace("__", "/"): value for name, value in changed.items()}}
    return score(SPEC, CONFIG, {k: v for k, v in values.items() if v is not None}, BASELINE)


def test_a_run_that_keeps_everything():
    found = of()
    assert found.objective == pytest.approx(0.2 + 10 * 0.03)
    assert found.broken == pytest.approx(
        {"on_gain": (0.99 - 0.96 - 0.04) / 0.04, "off_delta_p99_stress": -0.4, "dual/tracking": -1.0}
    )
    assert found.feasible
    assert found.excess == 0.0


@pytest.mark.parametrize(
    ("changed", "name", "by"),
    [
        ({"on_gain": 0.94}, "on_gain", 0.25),  # 0.05 under the baseline, 0.04 allowed
        ({"off_delta_p99_stress": 0.1}, "off_delta_p99_stress", 1.0),
        ({"dual__tracking": 0.0}, "dual/tracking", 1.0),  # a controller that stands still
        ({"dual__tracking": -0.01}, "dual/tracking", 2.0),
    ],
)
def test_how_far_a_constraint_is_broken_is_relative_to_its_limit(changed, name, by):
    found = of(**changed)
    assert found.broken[name] == pytest.approx(by)
    assert found.excess == pytest.approx(by)
    assert not found.feasible


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("name", ["on_gain", "off_delta_p99_stress", "dual__tracking"])
def test_what_is_missing_or_not_finite_never_keeps_its_constraint(name, value):
    found = of(**{name: value})
    assert found.broken[name.replace("__", "/")] == math.inf


def test_a_missing_baseline_breaks_what_is_compared_with_it():
    assert score(SPEC, CONFIG, GOOD, {}).broken["on_gain"] == math.inf


def test_a_dead_controller_loses_whatever_its_objective():
    """No swing at all is the best objective there is: the constraint is what keeps it from winning."""
    dead = of(dual__lambda_std=0.0, off_delta_p99_stress=0.001, dual__tracking=0.0)
    assert dead.objective < of().objective
    assert order(of()) < order(dead)


scores = st.builds(
    Score,
    st.floats(0, 10),
    st.fixed_dictionaries({"a": st.floats(-1, 1), "b": st.floats(-1, 1)}),
    st.fixed_dictionaries({"m": st.floats(-1, 1)}),
)


@given(st.lists(scores, min_size=1, max_size=6))
def test_over_seeds_the_objective_is_a_mean_and_a_constraint_the_worst(many):
    found = together(many)
    assert found.objective == pytest.approx(np.mean([one.objective for one in many]))
    assert found.broken == {name: max(one.broken[name] for one in many) for name in "ab"}
    assert found.feasible == all(one.feasible for one in many)
    assert found.metrics["m"] == pytest.approx(np.mean([one.metrics["m"] for one in many]))


@given(scores, scores)
def test_one_that_keeps_everything_stands_before_one_that_does_not(a, b):
    if a.feasible and not b.feasible:
        assert order(a) < order(b)
    if a.feasible and b.feasible and a.objective < b.objective:
        assert order(a) < order(b)


def test_the_noise_is_the_pooled_deviation_of_what_was_repeated():
    groups = [[1.0, 2.0, 4.0], [5.0], [7.0, 7.5], [math.inf, 1.0]]
    squares = np.var(groups[0], ddof=1) * 2 + np.var(groups[2], ddof=1)
    assert noise(groups) == pytest.approx(math.sqrt(squares / 3))
    assert noise([[1.0], []]) == 0.0


@pytest.mark.parametrize(
    ("objective", "best", "sigma", "answer"),
    [(0.5, None, 0.0, True), (0.5, 0.4, 0.2, True), (0.5, 0.4, 0.05, False), (0.3, 0.4, 0.0, True)],
)
def test_another_seed_is_run_where_it_could_change_who_is_best(objective, best, sigma, answer):
    assert is_contender(Score(objective, {"a": -1.0}, {}), best, sigma) is answer
    assert not is_contender(Score(objective, {"a": 1.0}, {}), best, sigma)
