from __future__ import annotations

import json

from cedkv.core.verdict import Verdict
from cedkv.release.gates import judge
from cedkv.report import summary, text


def test_every_run_is_a_line_with_its_numbers_and_the_results_are_counted(runs):
    verdicts = [
        Verdict(judge(run))
        for run in (
            runs.run("good"),
            runs.run("bad", deltas=[0.2] * 400),
            runs.with_metric(runs.run("lied"), "off_delta_p99_stress", 0.0),
        )
    ]
    lines = summary.to_table(verdicts).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "good", "bad", "lied"]
    assert lines[-1] == "3 runs: 1 pass, 1 fail, 1 inconclusive"
    assert "0.0395" in lines[1]
    assert "0.0395" not in lines[3]  # a number that the log does not prove is not shown
    assert summary.to_markdown(verdicts).count("\n| ") == 4
    assert [item["status"] for item in json.loads(summary.to_json(verdicts))] == [
        "pass",
        "fail",
        "inconclusive",
    ]
    assert text.to_junit(verdicts).count("<testsuite ") == 3


def test_hostile_names_stay_in_their_line(hostile_run):
    verdicts = [Verdict(judge(hostile_run))]
    assert len(summary.to_table(verdicts).splitlines()) == 4
    assert "<script>" not in summary.to_markdown(verdicts)


def test_no_runs_at_all():
    assert summary.to_table([]).endswith("0 runs\n")
