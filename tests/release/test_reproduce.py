"""Reproduction: which runs repeat one another, what they have to agree on, and how far apart their numbers are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cedkv.core.verdict import Reproduced, Status
from cedkv.release.gates import judge
from cedkv.release.reproduce import differences, find_repeats, judge_reproduction
from cedkv.release.verdict import Surroundings, verdict_on

T0 = 1_700_000_000_000
IDENTITY = {
    "cedkv.config_hash": "c",
    "cedkv.hash.on_train": "t",
    "cedkv.hash.off_train": "o",
}


@pytest.fixture
def make(runs):
    """Makes a run of one configuration."""

    def run(name, **options):
        return runs.run(name, tags={**IDENTITY, **options.pop("tags", {})}, **options)

    return run


def around(*records):
    return Surroundings("cedkv", records, {}, (), {run.run_id: run for run in records}.__getitem__)


def status(record, *others):
    return verdict_on(record, around(record, *others)).reproduction.status


def test_two_runs_with_the_same_gate_results_reproduce_one_another(make):
    first, second = make("first"), make("second", start_time_ms=T0 + 1)
    found = verdict_on(first, around(first, second)).reproduction
    assert (found.status, found.runs) == (Reproduced.YES, ("second",))
    assert verdict_on(second, around(first, second)).reproduction.runs == ("first",)


def test_failing_alike_is_reproduced_too(make):
    first, second = (make(name, deltas=[0.06] * 400) for name in ("first", "second"))
    assert judge(first).gate_b is Status.FAIL
    assert status(first, second) is Reproduced.YES


def test_one_run_that_ended_otherwise_is_enough_for_a_no(make):
    first, second, third = make("first"), make("second"), make("third", deltas=[0.06] * 400)
    found = verdict_on(first, around(first, second, third)).reproduction
    assert (found.status, found.runs) == (Reproduced.NO, ("third",))
    assert found.reason == "run third ended with Gate A pass, Gate B fail"
    assert status(third, first, second) is Reproduced.NO


@pytest.mark.parametrize(
    "tag",
    [
        *IDENTITY,
        "cedkv.phase",
        "cedkv.model_fingerprint",
        "cedkv.hash.documents",
        "cedkv.hash.on_eval",
        "cedkv.hash.stress",
    ],
)
def test_a_run_of_anything_else_is_no_repeat(runs, make, tag):
    first = make("first")
    for value in ("other", None):
        assert find_repeats(first, [runs.with_tag(make("second"), tag, value)]) == []
    assert find_repeats(runs.with_tag(first, tag, None), [runs.with_tag(make("second"), tag, None)]) == []


@pytest.mark.parametrize("change", [{"status": "FAILED"}, {"status": "RUNNING"}, {"lifecycle": "deleted"}])
def test_an_unfinished_or_deleted_run_repeats_nothing(make, change):
    assert status(make("first"), replace(make("second"), **change)) is Reproduced.NOT_TRIED


def test_what_is_inconclusive_proves_nothing(make):
    first, lost = make("first"), replace(make("second"), stress_table=None)
    assert status(first, lost) is Reproduced.NOT_TRIED
    assert status(lost, first) is Reproduced.NOT_TRIED
    assert status(first, lost, make("third")) is Reproduced.YES


def test_as_many_runs_as_configured_have_to_agree(runs, make):
    first, second, third = (
        runs.with_config(make(name), "phase3.eval.repro_runs", 3) for name in ("first", "second", "third")
    )
    found = verdict_on(first, around(first, second)).reproduction
    assert (found.status, found.reason) == (Reproduced.NOT_TRIED, "2 of 3 runs of this configuration")
    assert status(first, second, third) is Reproduced.YES


def test_alone_it_was_not_tried(make):
    assert judge_reproduction(make("first"), judge(make("first")), []).status is Reproduced.NOT_TRIED


# ---------------------------------------------------------------------------------------------------- number by number
def test_equal_runs_differ_in_nothing(make):
    trace = {"loss_curve.json": [{"step": 0, "phase3_loss": 1.0, "note": None}]}
    assert differences(make("first"), make("second"), (trace, trace)) == []


def test_every_kind_of_number_is_compared(runs, make):
    first, second = make("first"), make("second")
    second = runs.with_metric(second, "on_gain", first.metrics["on_gain"] + 0.25)
    rows = (replace(second.stress_table[0], stress_delta=0.5), *second.stress_table[1:])
    second = replace(second, stress_table=rows, on_table=second.on_table[:-1])
    traces = tuple({"loss_curve.json": [{"step": 0, "phase3_loss": x}]} for x in (1.0, 1.5))
    found = {item.name: item for item in differences(first, second, traces)}
    assert (found["on_gain"].differ, found["on_gain"].largest) == (1, 0.25)
    column = found["tables/off_stress.jsonl stress_delta"]
    assert (column.differ, column.of, column.largest) == (1, 400, 0.5)
    assert found["loss_curve.json phase3_loss"].largest == 0.5
    assert found["tables/on_eval.jsonl answer"].largest is None  # a row is missing
    assert len(found) == 3 + len(first.on_table[0].__dataclass_fields__)


def test_what_a_clock_or_a_verdict_wrote_is_not_compared(runs, make):
    first, second = make("first"), make("second")
    for name in ("perf/steps_per_second", "gate/a", "gate_margin/on_gain"):
        first = runs.with_metric(first, name, 1.0)
    assert differences(first, second) == []


def test_nan_equals_nan_and_a_missing_metric_equals_nothing(runs, make):
    first, second = (runs.with_metric(make(name), "p99_raw", math.nan) for name in ("first", "second"))
    assert differences(first, second) == []
    (gone,) = differences(first, runs.with_metric(second, "p99_raw", None))
    assert (gone.name, gone.largest) == ("p99_raw", None)
