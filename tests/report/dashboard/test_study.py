"""The page of a study: what is drawn is what its rows say, whatever they hold."""

from __future__ import annotations

import math

import pytest

from cedkv.report.dashboard import spec
from cedkv.report.dashboard.draw import draw

ETA, MODE = "phase3.train.lambda_off.dual.eta", "phase3.mix.mode"
ROWS = [
    {"trial": 0, "rank": 2, "objective": 0.4, ETA: 0.05, MODE: "kv", "runs": ["b" * 32]},
    {"trial": 1, "rank": None, "objective": None, ETA: 1.0, MODE: "kv", "runs": ["c" * 32]},
    {"trial": 2, "rank": 1, "objective": 0.2, ETA: 5.0, MODE: "v_only", "runs": ["d" * 32]},
    {"trial": 3, "rank": 3, "objective": 0.9, ETA: 0.5, MODE: "kv", "runs": ["e" * 32]},
]


@pytest.fixture
def view(looks):
    others = [
        looks.run({"lambda_off": {0: float(place), 5: 1.0}}, run_id=letter * 32, name=f"run {letter}")
        for place, letter in enumerate("bcde")
    ]
    study = looks.run({"tune/objective": {0: 0.4}}, rows={"tune/trials.jsonl": ROWS}, name="study")
    return looks.view(study, others=others)


def parallel(**values):
    return spec.Parallel(
        kind="parallel",
        title="t",
        rows="tune/trials.jsonl",
        keys=("phase3.*", "objective"),
        by="rank",
        **values,
    )


def test_every_scored_trial_is_a_line_and_the_best_is_drawn_last(view):
    drawn = draw(parallel(), view)
    assert len(drawn.figure.data) == 3
    assert drawn.about == "Without 1 trials that have no rank."
    best = drawn.figure.data[-1]
    assert best.text == ("mode: v_only", "eta (log): 5", "objective: 0.2")
    assert list(best.y) == [1.0, 1.0, 0.0]  # kv < v_only, 5 the largest eta, 0.2 the smallest objective
    assert list(drawn.figure.layout.xaxis.ticktext) == ["mode", "eta (log)", "objective"]


def test_a_logarithmic_axis_places_values_by_their_logarithm(view):
    middle = {trace.text[1]: trace.y[1] for trace in draw(parallel(), view).figure.data}
    assert middle["eta (log): 0.5"] == pytest.approx(math.log(0.5 / 0.05) / math.log(5 / 0.05))
    assert middle["eta (log): 0.05"] == 0.0


def test_best_and_worst_trials_are_drawn_from_their_own_runs(view):
    panel = spec.Trials(kind="trials", title="t", metrics=("lambda_off",), best=1)
    drawn = draw(panel, view)
    assert drawn.panel is panel
    assert {trace.name: list(trace.y) for trace in drawn.figure.data} == {
        "lambda_off · best, trial 2 (dddddddd)": [2.0, 1.0],
        "lambda_off · worst, trial 3 (eeeeeeee)": [3.0, 1.0],
    }


@pytest.mark.parametrize("ranked", [1, 2])
def test_few_trials_are_never_drawn_as_best_and_worst_at_once(looks, view, ranked):
    rows = sorted((row for row in ROWS if row["rank"]), key=lambda row: row["rank"])[:ranked]
    study = looks.run({"tune/objective": {0: 0.4}}, rows={"tune/trials.jsonl": rows})
    few = looks.view(
        study, others=[looks.run({"lambda_off": {0: 1.0}}, run_id=letter * 32) for letter in "bcde"]
    )
    drawn = draw(spec.Trials(kind="trials", title="t", metrics=("lambda_off",), best=2), few)
    assert len(drawn.figure.data) == ranked


@pytest.mark.parametrize(
    "rows",
    [
        [{"trial": 0, "rank": "first", "objective": "inf", "runs": "abc"}],
        [{"rank": 1, "runs": [{"<script>": 1}], "phase3.x": ["<b>"]}],
        [{"rank": 1, "runs": []}],
        [{"rank": math.nan}],
    ],
)
def test_rows_that_make_no_sense_draw_nothing_and_break_nothing(looks, rows):
    study = looks.run({"tune/objective": {0: 0.4}}, rows={"tune/trials.jsonl": rows})
    for panel in (parallel(), spec.Trials(kind="trials", title="t", metrics=("lambda_off",))):
        drawn = draw(panel, looks.view(study))
        assert drawn.empty or "<b>" not in drawn.figure.to_json()


def test_without_a_study_the_panels_say_what_to_choose(looks):
    run = looks.run({"p99_raw": {0: 1.0}})
    for panel in (parallel(), spec.Trials(kind="trials", title="t", metrics=("lambda_off",))):
        assert "choose the run of a study" in draw(panel, looks.view(run)).empty


def test_a_table_takes_patterns_and_what_has_no_rank_comes_last(view):
    panel = spec.Table(
        kind="table",
        title="t",
        rows="tune/trials.jsonl",
        columns=("rank", "trial", "phase3.*"),
        sort="rank",
        descending=False,
    )
    (grid,) = draw(panel, view).grids
    assert grid.header == ("rank", "trial", "mode", "eta")
    assert [row[1].text for row in grid.rows] == ["2", "0", "3", "1"]
