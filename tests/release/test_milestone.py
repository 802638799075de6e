"""The explore milestone: counting runs, finding the baseline, and the two conditions at their limits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest

from cedkv.core.verdict import MilestoneStatus, Status
from cedkv.release import exit_codes
from cedkv.release.gates import judge
from cedkv.release.milestone import find_baseline, judge_milestone, run_index

FLAG = {"phase3_explore": "true"}
T0 = 1_700_000_000_000


@pytest.fixture
def baseline(runs):
    return runs.run("base", phase="2", deltas=[0.1] * 400, start_time_ms=T0 - 1000)


@pytest.fixture
def explore(runs):
    return runs.run("mine", deltas=[0.06] * 400, start_time_ms=T0, tags=FLAG)


def test_both_conditions_met_is_a_pass_though_gate_b_fails(explore, baseline):
    result = judge_milestone(explore, [explore, baseline], baseline)
    assert result.status is MilestoneStatus.PASS
    assert (result.run_index, result.max_runs, result.baseline_run_id) == (1, 5, "base")
    assert judge(explore).gate_b is Status.FAIL


@pytest.mark.parametrize(
    ("p99", "status"),
    [(0.08, "pass"), (math.nextafter(0.08, 1.0), "fail"), (0.1, "fail"), (0.0, "pass")],
)
def test_the_tail_has_to_be_a_fifth_lower(runs, baseline, p99, status):
    run = runs.run("mine", deltas=[p99] * 400, tags=FLAG)
    assert judge_milestone(run, [run], baseline).status == status


@pytest.mark.parametrize(("then", "now"), [(0.7, 0.56), (0.05, 0.04), (0.15, 0.12)])
def test_a_fifth_is_a_fifth_in_decimals(runs, then, now):
    """0.8 * 0.7 is 0.5599... and 1 - 0.04 / 0.05 is 0.1999... in floating point."""
    base = runs.run("base", phase="2", deltas=[then] * 400)
    run = runs.run("mine", deltas=[now] * 400, tags=FLAG)
    assert judge_milestone(run, [run], base).status is MilestoneStatus.PASS


@pytest.mark.parametrize(("student", "status"), [(60, "pass"), (59, "pass"), (58, "fail"), (90, "pass")])
def test_on_gain_may_drop_by_one_in_a_hundred(runs, baseline, student, status):
    run = runs.run("mine", deltas=[0.01] * 400, on=runs.on_rows(student=student), tags=FLAG)
    assert judge_milestone(run, [run], baseline).status == status


def test_nothing_improves_on_a_baseline_of_zero(runs):
    base = runs.run("base", phase="2", deltas=[0.0] * 400)
    run = runs.run("mine", deltas=[0.0] * 400, tags=FLAG)
    assert judge_milestone(run, [run], base).status is MilestoneStatus.FAIL


def test_runs_are_counted_by_start_then_id_failed_and_deleted_included(runs, explore):
    others = [
        replace(runs.run("a", start_time_ms=T0 - 3, tags=FLAG), status="FAILED"),
        replace(runs.run("b", start_time_ms=T0 - 2, tags=FLAG), lifecycle="deleted"),
        replace(
            runs.run("c", start_time_ms=T0 - 1, tags=FLAG), status="RUNNING", config=None, stress_table=None
        ),
        runs.run("a-tie", start_time_ms=T0, tags=FLAG),
        runs.run("z-tie", start_time_ms=T0, tags=FLAG),
        runs.run("later", start_time_ms=T0 + 1, tags=FLAG),
        runs.run("unflagged", start_time_ms=T0 - 9),
        runs.run("said-no", start_time_ms=T0 - 9, tags={"phase3_explore": "false"}),
        replace(runs.run("elsewhere", start_time_ms=T0 - 9, tags=FLAG), experiment_id="2"),
    ]
    assert run_index(explore, [*others, explore]) == 5
    assert run_index(explore, others) == 5
    assert {run_index(explore, order) for order in permutations([*others[:5], explore])} == {5}


def test_the_sixth_run_has_spent_the_budget(runs, explore, baseline):
    earlier = [runs.run(f"r{i}", start_time_ms=T0 - 9, tags=FLAG) for i in range(5)]
    fifth = judge_milestone(explore, [explore, *earlier[:4], baseline], baseline)
    assert (fifth.status, fifth.run_index) == (MilestoneStatus.PASS, 5)
    sixth = judge_milestone(explore, [explore, *earlier, baseline], baseline)
    assert (sixth.status, sixth.run_index) == (MilestoneStatus.BUDGET_SPENT, 6)


def test_a_run_cannot_state_its_own_index(runs, explore, baseline):
    earlier = [runs.run(f"r{i}", start_time_ms=T0 - 9, tags=FLAG) for i in range(5)]
    claims = replace(explore, params={"run_index": "1"}, tags={**explore.tags, "run_index": "1"})
    assert judge_milestone(claims, [*earlier, claims], baseline).status is MilestoneStatus.BUDGET_SPENT


def test_another_name_for_the_flag_buys_no_further_runs(runs, baseline):
    earlier = [runs.run(f"r{i}", start_time_ms=T0 - 9, tags=FLAG) for i in range(5)]
    run = runs.run("mine", deltas=[0.06] * 400, start_time_ms=T0, tags={"phase3_try": "true"})
    run = runs.with_config(run, "phase3.milestone.explore.flag", "phase3_try")
    assert judge_milestone(run, [run], baseline).status is MilestoneStatus.PASS
    assert judge_milestone(run, [*earlier, run], baseline).status is MilestoneStatus.BUDGET_SPENT


@pytest.mark.parametrize(
    "change",
    [
        lambda runs, run: runs.with_tag(run, "phase3_explore", None),
        lambda runs, run: runs.with_tag(run, "phase3_explore", "false"),
        lambda runs, run: runs.with_tag(run, "cedkv.phase", "2"),
        lambda runs, run: runs.with_config(run, "phase3.milestone.explore.enabled", False),
    ],
    ids=["no flag", "flag false", "phase 2", "disabled"],
)
def test_where_the_milestone_does_not_apply(runs, explore, baseline, change):
    run = change(runs, explore)
    assert judge_milestone(run, [run], baseline).status is MilestoneStatus.NOT_APPLICABLE


@pytest.mark.parametrize("max_runs", [..., None, "5"])
def test_without_a_budget_in_the_configuration_nothing_is_judged(runs, explore, baseline, max_runs):
    run = runs.with_config(explore, "phase3.milestone.explore.max_runs", max_runs)
    assert judge_milestone(run, [run], baseline).status is MilestoneStatus.NOT_JUDGED


def test_without_a_baseline_nothing_is_judged(explore):
    assert judge_milestone(explore, [explore], None).status is MilestoneStatus.NOT_JUDGED


@pytest.mark.parametrize(
    "tag",
    [
        "cedkv.model_fingerprint",
        "cedkv.hash.documents",
        "cedkv.hash.on_eval",
        "cedkv.hash.stress",
        "cedkv.phase",
    ],
)
def test_a_baseline_on_anything_else_is_no_baseline(runs, explore, baseline, tag):
    for value in ("other", None):
        other = runs.with_tag(baseline, tag, value)
        assert find_baseline(explore, [other, explore]) is None
        assert judge_milestone(explore, [explore], other).status is MilestoneStatus.NOT_JUDGED
    both_unknown = runs.with_tag(explore, tag, None)
    if tag != "cedkv.phase":
        assert find_baseline(both_unknown, [runs.with_tag(baseline, tag, None)]) is None


@pytest.mark.parametrize("change", [{"status": "FAILED"}, {"status": "RUNNING"}, {"lifecycle": "deleted"}])
def test_an_unfinished_or_deleted_baseline_is_none(explore, baseline, change):
    assert find_baseline(explore, [replace(baseline, **change)]) is None


def test_the_last_baseline_before_the_run_is_the_one(explore, baseline):
    older = replace(baseline, run_id="older", start_time_ms=T0 - 2000)
    after = replace(baseline, run_id="after", start_time_ms=T0 + 1)
    much_later = replace(baseline, run_id="much-later", start_time_ms=T0 + 2)
    for order in permutations([older, baseline, after, much_later]):
        assert find_baseline(explore, order) is baseline
        assert find_baseline(explore, [run for run in order if run.start_time_ms > T0]) is after


def test_numbers_that_the_log_does_not_prove_are_not_judged(runs, explore, baseline):
    lied = runs.with_metric(explore, "off_delta_p99_stress", 0.001)
    assert judge_milestone(lied, [lied], baseline).status is MilestoneStatus.NOT_JUDGED
    lied = runs.with_metric(baseline, "on_gain", 0.0)
    assert judge_milestone(explore, [explore], lied).status is MilestoneStatus.NOT_JUDGED
    for change in ({"status": "FAILED"}, {"stress_table": None}, {"on_table": None}):
        run = replace(explore, **change)
        assert judge_milestone(run, [run], baseline).status is MilestoneStatus.NOT_JUDGED


def test_exit_codes(runs, explore, baseline):
    spent = judge_milestone(
        explore, [runs.run(f"r{i}", start_time_ms=1, tags=FLAG) for i in range(5)], baseline
    )
    good = judge(runs.run())
    failed = judge(explore)
    open_ = judge(replace(explore, status="RUNNING"))
    assert [exit_codes.exit_code(report) for report in (good, failed, open_)] == [0, 10, 11]
    assert [exit_codes.exit_code(report, spent) for report in (good, failed, open_)] == [0, 12, 12]
    passed = judge_milestone(explore, [explore], baseline)
    assert passed.status is MilestoneStatus.PASS
    assert exit_codes.exit_code(failed, passed) == 10


@pytest.mark.parametrize(
    ("codes", "one"), [([], 0), ([0, 0], 0), ([0, 12], 12), ([11, 12, 0], 11), ([12, 11, 10, 0], 10)]
)
def test_one_exit_code_for_many_runs(codes, one):
    assert exit_codes.exit_code_of_all(codes) == one


def test_erased_runs_still_count(runs, explore, baseline):
    """`mlflow gc` leaves nothing of a run; the experiment's ledger does."""
    erased = {f"r{i}": T0 - 9 for i in range(5)}
    result = judge_milestone(explore, [explore, baseline], baseline, {**erased, explore.run_id: T0})
    assert (result.status, result.run_index) == (MilestoneStatus.BUDGET_SPENT, 6)
    later = dict.fromkeys(erased, T0 + 9)
    assert judge_milestone(explore, [explore], baseline, later).run_index == 1


def test_a_flag_that_was_taken_away_is_remembered(runs, explore, baseline):
    unflagged = runs.with_tag(explore, "phase3_explore", None)
    assert judge_milestone(unflagged, [unflagged], baseline).status is MilestoneStatus.NOT_APPLICABLE
    remembered = judge_milestone(unflagged, [unflagged], baseline, {unflagged.run_id: T0})
    assert (remembered.status, remembered.run_index) == (MilestoneStatus.PASS, 1)


def test_a_run_in_the_store_and_in_the_ledger_counts_once(runs, explore):
    earlier = runs.run("r0", start_time_ms=T0 - 9, tags=FLAG)
    assert run_index(explore, [earlier, explore], explored={"r0": T0 - 9, "mine": T0}) == 2


def test_the_interval_of_the_improvement_pairs_prompts_by_id(runs, explore, baseline):
    deltas = [0.01 * (1 + i % 7) for i in range(400)]
    base = runs.run("base", phase="2", deltas=deltas, start_time_ms=T0 - 1000)
    run = runs.run("mine", deltas=[delta / 2 for delta in deltas], start_time_ms=T0, tags=FLAG)
    assert judge_milestone(run, [run], base).reduction_interval == (0.5, 0.5)
    assert judge_milestone(explore, [explore], None).reduction_interval is None
