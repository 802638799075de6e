"""Gate success (A and B) and the explore milestone are two verdicts: neither stands in for the other."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from cedkv.core.verdict import MilestoneStatus, Status, Verdict
from cedkv.release.exit_codes import exit_code
from cedkv.release.gates import judge
from cedkv.release.milestone import find_baseline, judge_milestone
from cedkv.report import text

FLAG = {"phase3_explore": "true"}


@pytest.fixture
def baseline(runs):
    return runs.run("baseline", phase="2", deltas=[0.5] * 400, start_time_ms=1)


@pytest.mark.parametrize(
    ("p99", "student", "verdicts"),
    [
        (0.01, 60, ("pass", "pass", "pass")),
        (0.01, 11, ("fail", "pass", "fail")),
        (0.20, 60, ("pass", "fail", "fail")),
        (0.20, 11, ("fail", "fail", "fail")),
    ],
)
def test_gate_success_is_a_and_b(runs, p99, student, verdicts):
    report = judge(runs.run(deltas=[p99] * 400, on=runs.on_rows(student=student)))
    assert (report.gate_a, report.gate_b, report.status) == verdicts


@pytest.mark.parametrize(
    ("p99", "student", "verdicts"),
    [
        (0.01, 60, ("pass", "pass")),
        (0.20, 60, ("fail", "pass")),  # progress, but not shippable
        (0.45, 60, ("fail", "fail")),
        (0.20, 55, ("fail", "fail")),  # the tail improved at the price of ON
        (0.01, 55, ("pass", "fail")),  # shippable, but ON was lost against the baseline
    ],
)
def test_gates_and_milestone_are_independent(runs, baseline, p99, student, verdicts):
    run = runs.run("mine", deltas=[p99] * 400, on=runs.on_rows(student=student), tags=FLAG)
    report = judge(run)
    result = judge_milestone(run, [run, baseline], find_baseline(run, [run, baseline]))
    assert (report.status, result.status) == verdicts
    assert judge(run) == report
    assert exit_code(report, result) == (0 if verdicts[0] == "pass" else 10)


def test_both_verdicts_are_recorded_side_by_side_in_every_format(runs, baseline):
    run = runs.run("mine", deltas=[0.2] * 400, tags=FLAG)
    verdict = Verdict(judge(run), judge_milestone(run, [run], baseline))
    content = json.loads(text.to_json(verdict))
    assert (content["gate_a"], content["gate_b"], content["status"]) == ("pass", "fail", "fail")
    assert (content["milestone"]["status"], content["milestone"]["baseline_run_id"]) == ("pass", "baseline")
    suite = ET.fromstring(text.to_junit([verdict])).find("testsuite")  # noqa: S314 - our own
    assert suite.get("failures") == "1"
    properties = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert (properties["gate_b"], properties["milestone"]) == ("fail", "pass")
    for page in (text.to_table(verdict), text.to_markdown(verdict)):
        assert "explore milestone  pass (flagged run 1 of at most 5)" in page


def test_the_milestone_asks_for_the_flag(runs, baseline):
    run = runs.run("mine", deltas=[0.01] * 400)
    assert judge_milestone(run, [run], baseline).status is MilestoneStatus.NOT_APPLICABLE
    assert judge(run).status is Status.PASS


def test_a_flag_changes_no_gate(runs):
    plain, flagged = judge(runs.run()), judge(runs.run(tags=FLAG))
    assert plain == flagged


def test_the_milestone_holds_for_the_first_five_runs_only(runs, baseline):
    flagged = [runs.run(f"run{i}", deltas=[0.2] * 400, start_time_ms=10 + i, tags=FLAG) for i in range(7)]
    flagged[0] = replace(flagged[0], status="FAILED")
    flagged[1] = replace(flagged[1], lifecycle="deleted")
    everything = [*reversed(flagged), baseline]
    statuses = [judge_milestone(run, everything, baseline).status.value for run in flagged]
    assert statuses == ["not judged", "not judged", "pass", "pass", "pass", "budget spent", "budget spent"]
    last = judge_milestone(flagged[-1], everything, baseline)
    assert exit_code(judge(flagged[-1]), last) == 12
    assert exit_code(judge(flagged[-1])) == 10


def test_without_a_baseline_on_the_same_data_the_milestone_is_not_judged(runs):
    run = runs.run("mine", deltas=[0.2] * 400, tags=FLAG)
    other = runs.run("baseline", phase="2", deltas=[0.5] * 399, start_time_ms=1)
    assert find_baseline(run, [run, other]) is None
    assert judge_milestone(run, [run, other], None).status is MilestoneStatus.NOT_JUDGED
