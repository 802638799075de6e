from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from cedkv import ledger
from cedkv.core.verdict import Verdict
from cedkv.release.gates import judge
from cedkv.report import run_page, run_report
from cedkv.report.traces import changes, column, rows_of, sparse

LAST = {
    "phase3_loss": 1.01,
    "phase3_loss_on": 0.5,
    "phase3_loss_off": 0.02,
    "phase3_loss_str": 0.2,
    "atom_mass/delimiter": 0.1,
    "atom_mass/value": 0.4,
    "atom_mass/delimiter_slot_max": 0.149,
    "slot_mass/on": 0.3,
    "slot_mass/off": 0.01,
    "perf/seconds_total": 60.0,
    "perf/seconds_tick": 12.0,
    "perf/seconds_train": 40.5,
}


@pytest.fixture
def run(runs):
    good = runs.run(deltas=[i / 10_000 for i in range(2048)])
    return replace(good, metrics={**good.metrics, **LAST})


def test_everything_the_plan_lists_is_in_the_report(run, traces):
    verdict = Verdict(judge(run))
    report = run_report.run_report(run, verdict, traces)
    assert report["off"]["off_delta_p99_stress"] == 0.2027
    assert report["off"]["off_delta_p99_typical"] == 0.2027 / 2
    assert [loss["name"] for loss in report["losses"]] == [
        "phase3_loss",
        "phase3_loss_on",
        "phase3_loss_off",
        "phase3_loss_str",
    ]
    assert report["losses"][0] == {"name": "phase3_loss", "first": 2.0, "lowest": 1.01, "last": 1.01}
    assert report["lambda_off_trace"]["ticks"] == 20
    assert report["lambda_off_trace"]["highest"] == pytest.approx(2.2)
    assert report["lambda_off_trace"]["rows"][-1]["step"] == 95
    assert report["topk_schedule"] == [{"step": 0, "topk": 32}, {"step": 25, "topk": 16}]
    assert report["atom_type_mass"]["types"]["value"] == {"first": 0.3, "last": 0.4}
    assert report["atom_type_mass"]["near_cap"] is True
    assert report["constraint_warnings"]["triggered"] == 18
    assert report["verdict"]["gate_b"] == "fail"
    assert report["seconds"] == {
        "perf/seconds_train": 40.5,
        "perf/seconds_tick": 12.0,
        "perf/seconds_total": 60.0,
    }
    page = run_page.to_markdown(report, verdict)
    for said in (
        *(
            "off_delta_p99_stress",
            "off_delta_p99_typical",
            "phase3_loss_on",
            "phase3_loss_off",
            "phase3_loss_str",
        ),
        *(
            "lambda_off_trace",
            "## Atom type mass",
            "## Worst prompts: 21 of 2048",
            "delimiter mass gathers at the cap",
            "## Where the time went",
        ),
    ):
        assert said in page


def test_the_worst_prompts_are_shown_and_their_families_counted(run):
    worst = run_report.run_report(run, Verdict(judge(run)))["worst"]
    assert (worst["count"], worst["of"], worst["families"]) == (21, 2048, {"counting": 21})
    assert worst["prompts"][0].keys() >= {"prompt", "state", "base_top", "student_top"}


def test_the_report_is_json_even_with_hostile_text(hostile_run, traces):
    written = run_report.to_json(run_report.run_report(hostile_run, Verdict(judge(hostile_run)), traces))
    assert written.isascii()
    report = json.loads(written)
    shown = {row["prompt"] for row in report["worst"]["prompts"]}
    assert shown <= {row.prompt for row in hostile_run.stress_table}


def test_the_page_holds_no_foreign_markup(hostile_run, traces):
    verdict = Verdict(judge(hostile_run))
    page = run_page.to_markdown(run_report.run_report(hostile_run, verdict, traces), verdict)
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(page)
    ours = {"table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "strong", "code", "h1", "h2"}
    assert set(re.findall(r"<(\w+)", html)) <= ours
    assert html.count("<h1>") == 1
    assert html.count("<h2>") == page.count("\n## ") == 14
    assert all(char == "\n" or char.isprintable() for char in page)


def test_a_run_of_phase_2_has_a_report_without_training(runs):
    run = runs.run(phase="2")
    verdict = Verdict(judge(run))
    page = run_page.to_markdown(run_report.run_report(run, verdict), verdict)
    assert "## Losses\n\nNot logged." in page
    assert "## Where the time went (seconds)\n\nNot logged." in page
    assert "**PASS**" in page


def test_a_run_with_nothing_in_its_log_still_has_a_report(runs):
    run = replace(
        runs.run(), end_time_ms=None, tags={}, metrics={}, config=None, data_spec=None, stress_table=None
    )
    run = replace(run, on_table=None)
    verdict = Verdict(judge(run))
    page = run_page.to_markdown(run_report.run_report(run, verdict), verdict)
    assert "**INCONCLUSIVE**" in page
    assert "## Worst prompts: 0 of 0\n\nNot logged." in page


def test_damaged_traces_are_left_out_not_fatal(run):
    damaged = {
        ledger.LOSS_CURVE: "text",
        ledger.LAMBDA_TRACE: [None, 3, {"lambda_off": "high"}],
        ledger.TOPK_TRACE: None,
    }
    report = run_report.run_report(run, Verdict(judge(run)), damaged)
    assert report["losses"][0]["first"] is None
    assert report["lambda_off_trace"]["ticks"] == 1
    assert report["lambda_off_trace"]["highest"] is None
    run_page.to_markdown(report, Verdict(judge(run)))


def test_rows_of_a_trace():
    rows = [{"step": i, "v": value} for i, value in enumerate((1, 1, 2, math.nan, "x", True, None))]
    assert column(rows, "v") == [1.0, 1.0, 2.0, None, None, None, None]
    assert [row["step"] for row in sparse(rows, 3)] == [0, 3, 6]
    assert sparse(rows, 10) == rows
    assert [row["step"] for row in changes(rows[:3], "v")] == [0, 2]
    assert rows_of({}, "loss_curve.json") == []
