from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedkv.core.dual import DualRule, DualState, cancelling_gain, poles

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


# ------------------------------------------------------------------------------------------- an independent oracle: cooper
def by_cooper(
    p99s: list[float], start: float, *, lr: float, beta: float, target: float, kp: float | None
) -> list[float]:
    """lambda after every update by cooper's own multiplier, its optimisers and a problem whose violation is the error."""
    import cooper
    import torch

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            multiplier = cooper.multipliers.DenseMultiplier(
                init=torch.tensor([start], dtype=torch.float64), dtype=torch.float64
            )
            self.tail = cooper.Constraint(
                constraint_type=cooper.ConstraintType.INEQUALITY,
                formulation_type=cooper.formulations.Lagrangian,
                multiplier=multiplier,
            )

        def compute_cmp_state(self, error: float) -> cooper.CMPState:
            violation = torch.tensor([error], dtype=torch.float64)
            state = cooper.ConstraintState(violation=violation)
            loss = torch.zeros((), dtype=torch.float64, requires_grad=True)
            return cooper.CMPState(loss=loss, observed_constraints={self.tail: state})

    problem = Problem()
    if kp is None:
        optimiser: torch.optim.Optimizer = torch.optim.SGD(problem.dual_parameters(), lr=lr, maximize=True)
    else:
        # From zeros its first step has the proportional term of a jump from 0: the start makes up for it.
        gains = {"Kp": torch.tensor(kp, dtype=torch.float64), "Ki": torch.tensor(lr, dtype=torch.float64)}
        zeros = cooper.optim.nuPIInitType.ZEROS
        optimiser = cooper.optim.nuPI(
            problem.dual_parameters(), lr=1.0, **gains, ema_nu=0.0, init_type=zeros, maximize=True
        )
        with torch.no_grad():
            problem.tail.multiplier.weight.sub_(kp * (p99s[0] - target))
    found: list[float] = []
    ema: float | None = None
    for p99 in p99s:
        ema = p99 if ema is None else beta * ema + (1 - beta) * p99
        optimiser.zero_grad()
        state = problem.compute_cmp_state(ema - target)
        store = state.compute_dual_lagrangian()
        store.backward()
        optimiser.step()
        problem.tail.multiplier.post_step_()
        found.append(problem.tail.multiplier.weight.item())
    return found


def by_us(rule: DualRule, p99s: list[float], start: float) -> list[float]:
    state, found = DualState(start), []
    for p99 in p99s:
        state = rule.update(state, p99)
        found.append(state.lambda_off)
    return found


@settings(deadline=None, max_examples=30)
@given(
    p99s=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    start=st.floats(0, 4),
    eta=st.floats(0.001, 0.08),
    beta=st.floats(0, 0.99),
    margin=st.floats(0, 0.04),
    gain=st.sampled_from([None, 0.5]),
)
def test_lambda_is_that_of_cooper(**drawn):
    """Where no increment is clipped: cooper clips lambda at 0 and knows no other bound."""
    p99s, start, eta, beta, margin, gain = drawn.values()
    rule = DualRule(eta, beta, 5, 0.0, 1e9, 1e9, 0.05, gain or 0.0, margin)
    wanted = by_cooper(p99s, start, lr=eta, beta=beta, target=0.05 - margin, kp=gain)
    assert by_us(rule, p99s, start) == pytest.approx(wanted, abs=1e-12)


# ----------------------------------------------------------------------------------------------------- when a loop rings
def closed_loop(rule: DualRule, gain: float, start: float, updates: int) -> list[float]:
    """lambda minus its rest point, on a plant whose p99 falls by `gain` for each unit of lambda."""
    rest, state, found = 1000.0, DualState(1000.0 + start), []
    for _ in range(updates):
        state = rule.update(state, rule.threshold - gain * (state.lambda_off - rest))
        found.append(state.lambda_off - rest)
    return found


def free(eta: float, beta: float, gain_p: float = 0.0) -> DualRule:
    return DualRule(eta, beta, 1, 0.0, 1e9, 1e9, 0.05, gain_p)


@settings(deadline=None, max_examples=100)
@given(beta=st.floats(0.05, 0.97), product=st.floats(1e-3, 5.0), pull=st.floats(0, 3))
def test_the_rule_does_on_a_linear_plant_what_its_poles_say(beta, product, pull):
    """The trajectory is the one of the recurrence with these poles; it stays bounded when both lie inside the unit circle."""
    eta, gain = 0.05, product / 0.05
    gain_p = pull * eta
    low, high = poles(eta, beta, gain, gain_p)
    trace = closed_loop(free(eta, beta, gain_p), gain, 1e-3, 40)
    for before, here, after in zip(trace[1:], trace[2:], trace[3:], strict=False):
        if max(map(abs, (before, here, after))) > 500:  # what diverges meets the bound of lambda
            break
        predicted = ((low + high) * here - low * high * before).real
        assert after == pytest.approx(predicted, rel=1e-5, abs=1e-8)
    if abs(high) < 0.9:
        assert abs(trace[-1]) < 1e-3
    if abs(high) > 1.2:
        assert max(map(abs, trace)) > 1e-2


@given(st.floats(0.05, 0.97))
def test_the_seeds_rule_rings_between_these_products_and_is_stable_below_this_one(beta):
    """Closed forms of the two boundaries, from the discriminant and from Jury's criterion."""

    def at(a: float) -> tuple[complex, complex]:
        return poles(0.05, beta, a / (0.05 * (1 - beta)))

    low, high, edge = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2, 2 * (1 + beta)
    assert at(low * 0.98)[1].imag == 0
    assert at(low * 1.02)[1].imag != 0
    assert abs(at((low + high) / 2)[1]) == pytest.approx(math.sqrt(beta))
    assert at(high * 1.02)[1].imag == 0
    assert abs(at(edge * 0.99)[1]) < 1 < abs(at(edge * 1.01)[1])


@pytest.mark.parametrize("gain", [1.0, 3.0, 8.0, 15.0])
def test_the_cancelling_gain_takes_the_ringing_away(gain):
    """The integral rule swings through its rest point again and again; with the cancelling gain lambda goes there at once."""
    ringing, damped = (
        closed_loop(free(0.05, 0.9, gain_p), gain, 1.0, 60) for gain_p in (0.0, cancelling_gain(0.05, 0.9))
    )
    assert min(ringing) < -0.04
    assert min(damped) > -1e-6
    assert max(map(abs, damped[40:])) <= 0.95**40


def test_nothing_winds_up_at_a_bound():
    """After a thousand updates at the upper bound the first one below the target already lowers lambda."""
    rule = DualRule(0.05, 0.0, 1, 0.0, 10.0, 0.1, 0.05, cancelling_gain(0.05, 0.9))
    state = DualState(9.9)
    for _ in range(1000):
        state = rule.update(state, 17.0)
    assert state.lambda_off == 10.0
    assert rule.update(state, 0.0).lambda_off == pytest.approx(9.9)


def test_a_margin_aims_below_the_threshold():
    rule = DualRule(0.05, 0.0, 1, 0.0, 10.0, 0.1, 0.05, 0.0, 0.02)
    assert rule.update(DualState(2.0), 0.04).lambda_off > 2.0 > rule.update(DualState(2.0), 0.02).lambda_off
