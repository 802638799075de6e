"""Panels against the log: what a figure or table shows is what was logged."""

from __future__ import annotations

import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.stats import order_statistic_quantile
from cedkv.report.dashboard import charts, points, spec
from cedkv.report.dashboard.draw import draw
from cedkv.report.dashboard.html import to_html

LIMIT = {"at": "phase3.thresholds.off_delta_p99_max", "label": "Gate B"}


def panel(kind: type[spec.Panel], **values: object) -> spec.Panel:
    return kind.model_validate(
        {"kind": kind.model_json_schema()["properties"]["kind"]["const"], "title": "t", **values}
    )


def named(figure: go.Figure, name: str) -> go.Scatter:
    return next(trace for trace in figure.data if trace.name == name)


def test_lines_are_the_logged_values_by_step(looks):
    run = looks.run({"loss/a": {0: 3.0, 2: 1.0, 1: 2.0}, "loss/b": {0: math.nan, 1: 5.0}})
    figure = draw(panel(spec.Line, metrics=["loss/*"]), looks.view(run)).figure
    a, b = named(figure, "loss/a"), named(figure, "loss/b")
    assert (list(a.x), list(a.y)) == ([0, 1, 2], [3.0, 2.0, 1.0])
    assert list(b.x) == [0, 1]
    assert math.isnan(b.y[0])  # a gap, not a number
    assert b.y[1] == 5.0


def test_several_runs_share_a_chart_and_each_has_a_colour(looks):
    first = looks.run({"p99_raw": {0: 1.0}, "p99_ema": {0: 1.0}})
    second = looks.run({"p99_raw": {0: 2.0}, "p99_ema": {0: 2.0}}, name="second", run_id="b" * 32)
    figure = draw(panel(spec.Line, metrics=["p99_raw", "p99_ema"]), looks.view(first, second)).figure
    colours = {trace.name: trace.line.color for trace in figure.data}
    assert len(colours) == 4
    assert colours["p99_raw · first (aaaaaaaa)"] == colours["p99_ema · first (aaaaaaaa)"]
    assert colours["p99_raw · first (aaaaaaaa)"] != colours["p99_raw · second (bbbbbbbb)"]


@pytest.mark.parametrize("log", [False, True])
def test_a_limit_stands_at_the_value_that_the_run_was_held_to(looks, log):
    run = looks.run({"p99_raw": {0: 1.0}}, config={"phase3": {"thresholds": {"off_delta_p99_max": 0.2}}})
    figure = draw(panel(spec.Line, metrics=["p99_raw"], limits=[LIMIT], log=log), looks.view(run)).figure
    (line,), (label,) = figure.layout.shapes, figure.layout.annotations
    assert line.y0 == line.y1 == 0.2
    assert label.y == pytest.approx(math.log10(0.2) if log else 0.2)
    assert label.text == "Gate B 0.2"


def test_a_limit_may_be_a_multiple_of_another_key(looks):
    config = {"phase3": {"candidate": {"delimiter": {"mass_cap": 0.15, "warn_ratio": 0.9}}}}
    run = looks.run({"m": {0: 1.0}}, config=config)
    place = "phase3.candidate.delimiter."
    limit = spec.Limit(at=place + "mass_cap", times=place + "warn_ratio")
    assert run.limit(limit) == pytest.approx(0.135)
    assert run.limit(spec.Limit(at="phase3.absent")) is None
    assert run.limit(spec.Limit(at=0.3)) == 0.3


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000))
def test_a_long_line_keeps_its_ends_and_every_extreme(values):
    kept = charts._kept(np.array(values)).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) <= charts.MOST_POINTS + 2
    assert {0, len(values) - 1} <= set(kept)
    shown = [values[place] for place in kept]
    assert (max(shown), min(shown)) == (max(values), min(values))


def test_areas_stack_in_the_ledgers_order_and_lines_lie_over_them(looks):
    run = looks.run(
        {
            "atom_mass/value": {0: 0.9},
            "atom_mass/key": {0: 0.1},
            "atom_mass/delimiter": {0: 0.0},
            "atom_mass/delimiter_slot_max": {0: 0.04},
        }
    )
    drawn = draw(
        panel(spec.Area, metrics=["atom_mass/*"], over=["atom_mass/delimiter_slot_max"]), looks.view(run)
    )
    traces = drawn.figure.data
    assert [trace.name for trace in traces] == ["key", "value", "delimiter", "delimiter_slot_max"]
    assert [trace.stackgroup is None for trace in traces] == [False, False, False, True]


@pytest.mark.parametrize(
    ("value", "better", "tone", "margin"),
    [(0.04, "lower", "good", "+0.01"), (0.07, "lower", "bad", "-0.02"), (0.07, "higher", "good", "+0.02")],
)
def test_a_number_says_in_words_on_which_side_of_its_limit_it_is(looks, value, better, tone, margin):
    run = looks.run({"m": {0: 1.0, 5: value}})
    (tile,) = draw(
        panel(spec.Number, metric="m", limit=LIMIT, better=better, unit="nats"), looks.view(run)
    ).tiles
    assert (tile.value, tile.tone) == (f"{value} nats", tone)
    assert ("within" if tone == "good" else "beyond") in tile.detail
    assert margin in tile.detail


def test_a_tail_is_the_share_at_or_over_each_value_and_marks_the_quantile_of_the_gates(looks):
    deltas = np.random.default_rng(0).lognormal(-6, 2, 400)
    rows = {"tables/off_stress.jsonl": [{"stress_delta": float(value)} for value in deltas]}
    run, baseline = looks.run({"u": {0: 0.3}}, rows=rows), looks.run(rows=rows, name="base", run_id="b" * 32)
    drawn = draw(
        panel(
            spec.Tail,
            rows="tables/off_stress.jsonl",
            x="stress_delta",
            quantile=0.99,
            bound="u",
            baseline=True,
            limits=[LIMIT],
        ),
        looks.view(run, baseline=baseline),
    )
    curve, mark = drawn.figure.data[:2]
    for value, share in zip(curve.x[::37], curve.y[::37], strict=True):
        assert share == pytest.approx(np.mean(deltas >= value))
    assert list(mark.x) == [order_statistic_quantile(deltas.tolist()), 0.3]
    assert any(str(trace.name).startswith("base (") for trace in drawn.figure.data)
    assert drawn.figure.layout.shapes[0].x0 == 0.05


def test_rows_by_family_count_what_is_over_the_limit(looks):
    rows = {
        "t": [
            {"f": "near", "d": 0.06},
            {"f": "near", "d": 0.01},
            {"f": "sum", "d": 0.05},
            {"f": "sum", "d": None},
        ]
    }
    drawn = draw(
        panel(spec.Table, rows="t", group="f", value="d", limit=LIMIT), looks.view(looks.run(rows=rows))
    )
    (grid,) = drawn.grids
    assert [[cell.text for cell in row] for row in grid.rows] == [
        ["near", "2", "1", "50.00%", "0.06", "0.06"],
        ["sum", "1", "0", "0.00%", "0.05", "0.05"],
    ]


def test_rows_are_sorted_cut_and_said_to_be(looks):
    rows = {"t": [{"d": value, "p": f"prompt {value}"} for value in (1, 3, 2)]}
    (grid,) = draw(
        panel(spec.Table, rows="t", columns=["d"], sort="d", most=2), looks.view(looks.run(rows=rows))
    ).grids
    assert [[cell.text for cell in row] for row in grid.rows] == [["3"], ["2"]]
    assert "2 of 3 rows" in grid.about


def test_a_scatter_has_a_frame_for_every_step_and_shows_the_last_one(looks):
    rows = {
        "s": [{"step": step, "x": 1.0 + step, "y": 2.0} for step in (0, 5, 10)]
        + [{"step": 10, "x": 0, "y": 1}]
    }
    figure = draw(
        panel(spec.Scatter, rows="s", x="x", y="y", frame="step", log=["x"]), looks.view(looks.run(rows=rows))
    ).figure
    assert [list(trace.x) for trace in figure.data] == [
        [1.0],
        [6.0],
        [11.0],
    ]  # 0 has no place on a logarithmic axis
    assert [trace.visible for trace in figure.data] == [False, False, None]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "5", "10"]
    assert [step.args[0]["visible"] for step in slider.steps] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_a_heat_map_is_the_rows_of_the_artifact(looks):
    rows = {"h": [{"doc": "d0", "mass": [0.1, 0.2]}, {"doc": "d1", "mass": [0.3, None]}]}
    (trace,) = draw(
        panel(spec.Heatmap, rows="h", y="doc", values="mass", top={"at": 0.5}),
        looks.view(looks.run(rows=rows)),
    ).figure.data
    assert [list(row) for row in trace.z] == [[0.1, 0.2], [0.3, None]]
    assert (list(trace.y), trace.zmin, trace.zmax) == (["d0", "d1"], 0, 0.5)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_the_front_holds_exactly_the_points_that_no_other_one_beats(found, x_low, y_low):
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        dx, dy = (b[0] - a[0]) * (1 if x_low else -1), (b[1] - a[1]) * (1 if y_low else -1)
        return dx >= 0 and dy >= 0 and (dx, dy) != (0, 0)

    front = points.pareto(found, x_low, y_low)
    assert set(front) == {p for p in found if not any(beats(other, p) for other in found)}


def test_every_run_is_a_point_and_those_looked_at_are_marked(looks):
    first = looks.run({"x": {0: 1.0}, "y": {0: 2.0}})
    other = looks.run({"x": {0: 3.0}, "y": {0: 1.0}}, run_id="b" * 32, tags={"cedkv.phase": "2"})
    view = looks.view(first, listed=[first.record, other.record])
    figure = draw(panel(spec.Runs, x="x", y="y", pareto=True), view).figure
    by_phase = {trace.name: trace for trace in figure.data}
    assert list(by_phase["phase 3"].marker.symbol) == ["diamond"]
    assert list(by_phase["phase 2"].marker.symbol) == ["circle"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (spec.Line, {"metrics": ["m"]}),
        (spec.Area, {"metrics": ["m"]}),
        (spec.Bar, {"metrics": ["m"]}),
        (spec.Scatter, {"rows": "r", "x": "x", "y": "y"}),
        (spec.Tail, {"rows": "r", "x": "x"}),
        (spec.Heatmap, {"rows": "r", "y": "y", "values": "v"}),
        (spec.Runs, {"x": "x", "y": "y"}),
        (spec.Table, {"rows": "r"}),
        (spec.Table, {"rows": "checks"}),
        (spec.Table, {"rows": "warnings"}),
    ],
)
def test_a_panel_without_anything_to_show_says_why(looks, kind, values):
    drawn = draw(panel(kind, **values), looks.view(looks.run()))
    assert drawn.figure is None
    assert not drawn.grids
    assert len(drawn.empty) > 20
    nobody = draw(panel(kind, **values), looks.view())
    assert nobody.empty


def test_the_outcome_says_of_every_run_what_its_verdict_says(looks, runs):
    from cedkv.core.verdict import Certification, MilestoneReport, MilestoneStatus, Status, Verdict
    from cedkv.release.gates import judge

    gates = judge(runs.run("a" * 32, deltas=[0.01] * 390 + [0.2] * 10))
    milestone = MilestoneReport("a" * 32, MilestoneStatus.BUDGET_SPENT, "late", run_index=6, max_runs=5)
    sealed = Certification(Status.PASS, "", 8192, 51, 0.05, 0.99, 0.01, 0.0086, 0.0365, "f" * 64, 1, 5)
    run = looks.run(verdict=Verdict(gates, milestone, certification=sealed))
    (outcome,) = draw(panel(spec.Table, rows="outcome"), looks.view(run)).grids
    told = {row[0].text: row[1] for row in outcome.rows}
    assert (told["Gate A"].text, told["Gate A"].tone) == ("pass", "good")
    assert (told["Gate B"].text, told["Gate B"].tone) == ("fail", "bad")
    assert told["tail"].text == "stress prompts over the limit: 10 (the 95 % bound allows 0)"
    assert (told["explore budget used"].text, told["explore budget used"].tone) == (
        "run 6 of at most 5",
        "bad",
    )
    assert "51 of 8192 prompts" in told["certified"].text
    (checks,) = draw(panel(spec.Table, rows="checks", most=60), looks.view(run)).grids
    assert [row[1].text for row in checks.rows] == [check.name for check in gates.checks]
    assert [row[7].text for row in checks.rows] == [check.status for check in gates.checks]


HOSTILE = [
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    "x" * 10_000,
    "\u202egnp.exe",
    "🙂",
    "</script><img src=x>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_file_shows_hostile_names_and_prompts_as_text(looks, text):
    rows = {"t": [{"prompt": text, "d": 1.0, "mass": [1.0]}]}
    run = looks.run({"m": {0: 1.0}}, rows=rows, name=text)
    other = looks.run({"m": {0: 1.0}}, rows=rows, name=text, run_id="b" * 32)
    page = spec.Page.model_validate(
        {
            "page": text[:120],
            "about": text,
            "panels": [
                panel(spec.Table, rows="t"),
                panel(spec.Line, metrics=["m"]),
                panel(spec.Scatter, rows="t", x="d", y="d", by="prompt"),
                panel(spec.Heatmap, rows="t", y="prompt", values="mass"),
                panel(spec.Runs, x="m", y="m"),
            ],
        }
    )
    written = to_html([page], looks.view(run, other), text)
    ours = written.replace(written.partition("</main><script>")[2].partition("</script>")[0], "")
    assert ours.count("<script") == 4 + 2  # a figure's data each, plotly, and what draws
    assert "<img" not in ours
    assert "\u202e" not in ours
    assert 'href="javascript' not in ours
    for block in ours.split('type="application/json"')[1:]:
        json.loads(block.partition(">")[2].partition("</script>")[0])


def test_a_file_asks_for_nothing_outside_itself(looks):
    page = spec.Page.model_validate({"page": "p", "panels": [panel(spec.Line, metrics=["m"])]})
    written = to_html([page], looks.view(looks.run({"m": {0: 1.0}})), "title")
    assert "default-src 'none'" in written
    assert 'src="http' not in written
    assert "<link" not in written
