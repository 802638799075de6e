"""Warning rules against hand-made logs."""

from __future__ import annotations

import json

import pytest

from cedkv.report.dashboard.alerts import acknowledgement, alerts_of, rules_of
from cedkv.report.dashboard.spec import Page, Rule

CAP = {"at": "phase3.candidate.delimiter.mass_cap", "times": "phase3.candidate.delimiter.warn_ratio"}
CONFIG = {"phase3": {"candidate": {"delimiter": {"mass_cap": 0.15, "warn_ratio": 0.9}}}}


def rule(**values: object) -> Rule:
    return Rule.model_validate({"name": "r", "level": "warning", "metric": "m", "says": "s", **values})


def test_any_value_over_the_limit_warns_with_the_first_step_and_the_worst_value(looks):
    run = looks.run({"m": {0: 0.1, 7: 0.2, 8: 0.3, 9: 0.05}}, config=CONFIG)
    (alert,) = alerts_of(run, [rule(at="any", over=CAP)])
    assert (alert.step, alert.value, alert.limit) == (7, 0.3, pytest.approx(0.135))
    assert alerts_of(run, [rule(at="last", over=CAP)]) == []


@pytest.mark.parametrize(("reaches", "warns"), [(False, 0), (True, 1)])
def test_at_the_limit_a_rule_warns_only_if_it_says_so(looks, reaches, warns):
    run = looks.run({"m": {0: 0.3}})
    assert len(alerts_of(run, [rule(over={"at": 0.3}, reaches=reaches)])) == warns


def test_under_looks_for_the_smallest_value(looks):
    (alert,) = alerts_of(looks.run({"m": {0: 0.1, 1: -2.0}}), [rule(at="any", under={"at": 0.02})])
    assert (alert.step, alert.value) == (1, -2.0)


def test_what_was_not_logged_or_configured_or_finite_does_not_warn(looks):
    run = looks.run({"m": {0: float("nan")}}, config={})
    assert alerts_of(run, [rule(over={"at": 0}), rule(metric="absent", over={"at": 0}), rule(over=CAP)]) == []


def test_the_rows_behind_a_warning_come_with_it(looks):
    rows = [{"step": 3, "document": "d1", "slot": 2}]
    run = looks.run({"m": {0: 1.0}}, rows={"delimiter_warnings.jsonl": rows})
    (alert,) = alerts_of(run, [rule(over={"at": 0}, behind="delimiter_warnings.jsonl")])
    assert alert.behind == tuple(rows)


@pytest.mark.parametrize(
    ("tag", "note"),
    [
        (None, ""),
        (acknowledgement("seen, harmless"), "seen, harmless"),
        ("not json", "(no note)"),
        (json.dumps({"note": 3}), "(no note)"),
        (json.dumps({"note": " "}), "(no note)"),
    ],
)
def test_an_acknowledgement_is_a_tag_of_the_run(looks, tag, note):
    run = looks.run({"m": {0: 1.0}}, tags={} if tag is None else {"cedkv.acknowledged.r": tag})
    (alert,) = alerts_of(run, [rule(over={"at": 0})])
    assert (alert.note, alert.acknowledged) == (note, tag is not None)


def test_the_most_serious_rules_come_first():
    panels = [{"kind": "number", "title": "t", "metric": "m"}]
    rules = [rule(name=f"r-{level}", level=level, over={"at": 0}) for level in ("info", "error", "warning")]
    page = Page.model_validate({"page": "p", "panels": panels, "warnings": rules})
    assert [found.level for found in rules_of([page])] == ["error", "warning", "info"]


def test_a_point_that_is_just_being_added_is_left_out(looks):
    run = looks.run({"m": {0: 1.0}})
    run.history["m"].steps.append(1)  # its value comes in a moment, from another thread
    (alert,) = alerts_of(run, [rule(at="any", over={"at": 0})])
    assert (alert.step, alert.value) == (0, 1.0)
