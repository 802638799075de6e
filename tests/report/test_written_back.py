"""What a verdict leaves on its run: complete, safe, and beside what people wrote."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from cedkv.core.verdict import Reproduced, Reproduction, Verdict
from cedkv.release.gates import judge
from cedkv.release.milestone import judge_milestone
from cedkv.report import written_back
from cedkv.tracking.names import MAX_TAG, check_key


@pytest.fixture
def failing(runs):
    return Verdict(judge(runs.run(deltas=[0.2] * 400)), reproduction=Reproduction(Reproduced.YES, ("other",)))


def test_tags_name_every_result(runs, failing):
    assert written_back.tags(failing) == {
        "cedkv.verdict": "fail",
        "cedkv.gate_a": "pass",
        "cedkv.gate_b": "fail",
        "cedkv.reproduced": "yes",
    }
    run = runs.run(tags={"phase3_explore": "true"})
    explored = Verdict(judge(run), judge_milestone(run, [run], None))
    assert written_back.tags(explored)["cedkv.milestone"] == "not judged"


def test_metrics_are_the_gates_and_the_margins(failing):
    found = written_back.metrics(failing)
    assert (found["gate/a"], found["gate/b"]) == (1.0, 0.0)
    assert found["gate_margin/off_delta_p99_stress"] == pytest.approx(-0.15)
    assert found["gate_margin/on_gain"] == pytest.approx(0.48)
    assert all(check_key(name) for name in found)


def test_the_description_shows_verdict_checks_and_worst_prompts(failing):
    page = written_back.description(failing)
    for said in (
        "**FAIL** · Gate A pass · Gate B fail · reproduced: yes",
        "`off_delta_p99_stress`",
        "does not hold",
        "Is 0 odd?",
    ):
        assert said in page


def test_a_description_fits_a_tag_and_holds_no_foreign_markup(hostile_run):
    page = written_back.description(Verdict(judge(hostile_run)))
    assert len(page) <= MAX_TAG
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(page)
    ours = {"table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "strong", "code"}
    assert set(re.findall(r"<(\w+)", html)) <= ours


def test_what_people_wrote_stays_and_the_verdict_is_replaced(runs, failing):
    passing = Verdict(judge(runs.run()))
    first = written_back.description(passing, "My note.")
    assert first.endswith("\n\nMy note.")
    second = written_back.description(failing, first + "\nMore.")
    assert second.endswith("\n\nMy note.\nMore.")
    assert (second.count("**FAIL**"), second.count("**PASS**")) == (1, 0)
    assert written_back.description(failing, second) == second


@pytest.mark.parametrize(("length", "ours"), [(1000, "worst prompts"), (4500, "**FAIL**"), (4990, None)])
def test_a_long_note_is_never_cut(failing, length, ours):
    note = "n" * length
    page = written_back.description(failing, note)
    assert page.endswith(note)
    assert len(page) <= MAX_TAG
    assert page == note if ours is None else ours in page
    assert written_back.description(failing, page) == page
