"""Certification: the statement against scipy, the shares of the error probability, and logs that prove nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from cedkv.core.verdict import Status
from cedkv.release.certify import Attempt, is_affordable, judge_certificate

N = 2000
SHARE = 0.05 / 5
MINE = Attempt("mine", "run-1", 1000, SHARE)


@pytest.fixture
def certified(runs):
    """Makes a run whose sealed set was opened, with `over` of its prompts over tau."""

    def make(over: int = 0, **changes):
        run = runs.run(tags={"cedkv.hash.sealed": "sealed-1"})
        run = runs.with_config(run, "phase3.certification", {"delta": 0.05, "max_attempts": 5})
        run = runs.with_spec(run, "sealed", {"count": N, "sha256": "sealed-1"})
        certificate = {
            "run_id": run.run_id,
            "attempt_id": "mine",
            "delta": 0.05,
            "max_attempts": 5,
            "tau": 0.05,
            "set": {"sha256": "sealed-1", "count": N},
            "model_fingerprint": "model-1",
            "deltas": [0.2] * over + [0.001] * (N - over),
        }
        return replace(run, certificate={**certificate, **changes})

    return make


def attempts(before: int = 0, after: int = 0) -> list[Attempt]:
    return [
        *(Attempt(f"before-{n}", "other", n, SHARE) for n in range(before)),
        MINE,
        *(Attempt(f"after-{n}", "other", 2000 + n, SHARE) for n in range(after)),
    ]


@pytest.mark.parametrize("over", [0, 5, 10, 11, 12, 40])
def test_the_statement_is_the_exact_binomial_one(certified, over):
    found = judge_certificate(certified(over), attempts(before=1))
    interval = binomtest(over, N, alternative="less").proportion_ci(1 - SHARE, method="exact")
    assert found.upper_rate == pytest.approx(interval.high, rel=1e-9)
    assert (found.status is Status.PASS) == (interval.high <= 0.01)
    assert (found.n, found.exceedances, found.attempt, found.max_attempts) == (N, over, 2, 5)
    assert found.confidence == pytest.approx(0.99)


def test_both_verdicts_occur_and_the_bound_agrees(certified):
    found = [judge_certificate(certified(over), attempts()) for over in range(15)]
    assert {item.status for item in found} == {Status.PASS, Status.FAIL}
    assert all((item.p99_upper <= 0.05) == (item.status is Status.PASS) for item in found)


def test_a_run_that_was_never_opened_has_none(runs):
    assert judge_certificate(runs.run(), ()) is None


def test_a_value_at_tau_does_not_exceed_it(certified):
    found = judge_certificate(certified(deltas=[0.05] * N), attempts())
    assert (found.exceedances, found.status) == (0, Status.PASS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run_id": "another"}, "run id"),
        ({"set": {"sha256": "other"}}, "sealed set"),
        ({"deltas": [0.0] * (N - 1)}, "size of the sealed set"),
        ({"deltas": [None, *[0.0] * (N - 1)]}, "size of the sealed set"),
        ({"deltas": [math.inf, *[0.0] * (N - 1)]}, "not finite"),
        ({"model_fingerprint": "other"}, "model"),
        ({"tau": 0.5}, "tau"),
        ({"delta": 0.04}, "delta"),
        ({"max_attempts": 1}, "max_attempts"),
        ({"attempt_id": "invented"}, "not in the experiment's ledger"),
    ],
)
def test_a_certificate_that_the_log_does_not_prove(certified, changes, says):
    found = judge_certificate(certified(**changes), attempts())
    assert found.status is Status.INCONCLUSIVE
    assert says in found.reason


def test_only_a_finished_run_is_certified(certified):
    found = judge_certificate(replace(certified(), status="RUNNING"), attempts())
    assert found.status is Status.INCONCLUSIVE


def test_the_sixth_attempt_is_not_covered_and_later_ones_change_nothing(certified):
    assert judge_certificate(certified(), attempts(before=4, after=3)).status is Status.PASS
    late = judge_certificate(certified(), attempts(before=5))
    assert (late.status, late.reason) == (
        Status.INCONCLUSIVE,
        "the attempts before it had spent the error probability",
    )


def test_an_attempt_has_to_pay_its_share(certified):
    cheap = replace(MINE, share=1e-6)
    found = judge_certificate(certified(), [cheap])
    assert found.status is Status.INCONCLUSIVE
    assert "not delta / max_attempts" in found.reason


def test_five_shares_are_affordable_and_six_are_not():
    made = [Attempt(str(n), "run", n, SHARE) for n in range(5)]
    assert [is_affordable(SHARE, 0.05, made[:n]) for n in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize(
    "entry", [{}, {"share": "much", "started_ms": 1}, {"share": 0.01}, {"share": math.nan}]
)
def test_a_damaged_entry_has_spent_everything(entry):
    attempt = Attempt.read("lost", entry)
    assert attempt.share == 1.0
    assert not is_affordable(SHARE, 0.05, [attempt])


def test_an_entry_is_read_as_it_was_written():
    entry = {"run_id": "run-1", "started_ms": 1000, "share": SHARE}
    assert Attempt.read("mine", entry) == MINE
