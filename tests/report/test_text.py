"""One verdict in four formats: each parsed back, each with hostile text in every free field."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from cedkv.core.verdict import Status, Verdict
from cedkv.release.gates import judge
from cedkv.release.milestone import judge_milestone
from cedkv.report import escape, text
from cedkv.report.tables import aligned, jsonable, shown


def strict(content: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(content, parse_constant=refuse)


def test_json_says_what_the_report_says(runs):
    report = judge(runs.run(deltas=[0.2] * 400))
    content = strict(text.to_json(Verdict(report)))
    assert [item["name"] for item in content["checks"]] == [item.name for item in report.checks]
    assert [item["status"] for item in content["checks"]] == [item.status.value for item in report.checks]
    assert content["status"] == "fail"
    assert content["schema"] == "1"
    assert content["milestone"] is None
    p99 = next(item for item in content["checks"] if item["name"] == "off_delta_p99_stress")
    assert (p99["value"], p99["operator"], p99["limit"], p99["n"]) == (0.2, "<=", 0.05, 400)
    assert p99["margin"] == pytest.approx(-0.15)


def test_json_holds_hostile_text_whole_and_escaped(hostile_run):
    written = text.to_json(Verdict(judge(hostile_run)))
    assert written.isascii()
    content = strict(written)
    assert content["run_name"] == hostile_run.name
    assert len(content["notes"]) >= len(hostile_run.problems)


def test_numbers_that_are_not_finite_become_null(runs):
    report = judge(runs.with_metric(runs.run(), "teacher_cache_max_kl", math.inf))
    check = next(
        item
        for item in strict(text.to_json(Verdict(report)))["checks"]
        if item["name"] == "teacher_cache_max_kl"
    )
    assert (check["value"], check["status"], check["margin"]) == (None, "inconclusive", None)
    assert jsonable({"a": (math.nan, [1.0, -math.inf])}) == {"a": [None, [1.0, None]]}


def test_junit_counts_and_places_failures_and_errors(runs):
    run = runs.with_metric(runs.run(deltas=[0.2] * 400), "teacher_cache_max_kl", None)
    report = judge(run)
    root = ET.fromstring(text.to_junit([Verdict(report)]).encode())  # noqa: S314 (our own)
    suite = root.find("testsuite")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == [item.name for item in report.checks]
    assert int(suite.get("tests")) == len(report.checks)
    assert (suite.get("failures"), suite.get("errors")) == ("1", "1")
    assert cases["off_delta_p99_stress"].find("failure").get("message") == "0.2 <= 0.05 does not hold"
    assert cases["teacher_cache_max_kl"].find("error").get("type") == "inconclusive"
    assert len(cases["on_gain"]) == 0
    assert cases["on_gain"].get("classname") == "gate.A"


def test_junit_is_well_formed_with_hostile_text(hostile_run):
    report = judge(hostile_run)
    root = ET.fromstring(text.to_junit([Verdict(report)]).encode())  # noqa: S314 (our own)
    assert len(list(root.iter("testcase"))) == len(report.checks)
    assert len(list(root.iter("failure"))) == sum(item.status is Status.FAIL for item in report.checks)


def test_the_table_is_aligned_and_says_why(runs):
    page = text.to_table(Verdict(judge(runs.run(deltas=[0.2] * 400))))
    lines = page.splitlines()
    head = next(line for line in lines if line.startswith("gate "))
    rows = [line for line in lines if re.match(r"(run|A|B) ", line) and not line.startswith("run run-1")]
    assert {line[head.index("status") :] for line in rows} == {"pass", "fail"}
    assert "off_delta_p99_stress: 0.2 <= 0.05 does not hold" in page
    assert "Gate A  pass\nGate B  fail\ngates   fail\n" in page
    assert "stress prompts over the limit: 400 (the 95 % bound allows 0)" in page


def test_the_table_never_sends_a_control_character(hostile_run):
    page = text.to_table(Verdict(judge(hostile_run)))
    assert all(char == "\n" or char.isprintable() for char in page)
    assert sum(line.startswith("Gate B") for line in page.splitlines()) == 1


def test_markdown_shows_every_check_and_no_foreign_markup(hostile_run):
    report = judge(hostile_run)
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text.to_markdown(Verdict(report)))
    assert html.count("<tr>") == len(report.checks) + len(report.reported) + 2
    assert set(re.findall(r"<(\w+)", html)) <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
        "ul",
        "li",
        "strong",
        "code",
    }


def test_a_milestone_that_is_not_judged_is_said_in_every_format(runs):
    run = runs.run(tags={"phase3_explore": "true"})
    verdict = Verdict(judge(run), judge_milestone(run, [run], None))
    for page in (text.to_table(verdict), text.to_markdown(verdict)):
        assert "explore milestone  not judged (flagged run 1 of at most 5): no Phase 2 run" in page
    assert strict(text.to_json(verdict))["milestone"]["status"] == "not judged"
    assert 'name="milestone" value="not judged"' in text.to_junit([verdict])


def test_a_certified_verdict_says_so(runs):
    page = text.to_table(Verdict(judge(runs.run(deltas=[0.001] * 2048, thresholds={"certified": True}))))
    assert "Gate B  pass (judged by its 95 % upper bound)" in page
    assert "the 95 % bound allows 12" in page


def test_values_for_people():
    assert [shown(value) for value in (None, 0.05, 1e-7, 2048, "ab" * 32, "a\nb")] == [
        "-",
        "0.05",
        "1e-07",
        "2048",
        "abababababab",
        r"a\nb",
    ]


def test_columns_line_up_by_terminal_width():
    lines = aligned([("東", "1"), ("abc", "22")], (False, True))
    assert [escape.width(line) for line in lines] == [7, 7]
