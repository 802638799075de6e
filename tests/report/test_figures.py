from __future__ import annotations

import re

import pytest

from cedkv import ledger
from cedkv.report.figures import training_figure, training_html


@pytest.fixture
def figure(traces):
    return training_figure(traces, p99_limit=0.05, delimiter_cap=0.15, title="<b>x</b>\x1b")


def test_every_line_of_a_run_is_drawn_from_its_trace(figure, traces):
    lines = {line.name: line for line in figure.data}
    assert set(lines) == {
        *("phase3_loss", "phase3_loss_on", "phase3_loss_off", "phase3_loss_str"),
        *("p99_raw", "p99_ema", "lambda_off"),
        *ledger.ATOM_TYPES,
        "largest delimiter mass of a slot",
    }
    rows = traces[ledger.LAMBDA_TRACE]
    assert list(lines["lambda_off"].x) == [row["step"] for row in rows]
    assert list(lines["lambda_off"].y) == [row["lambda_off"] for row in rows]
    assert list(lines["p99_raw"].y)[2:5] == [0.3, None, 0.3]  # a gap where the reading was not finite


def test_the_masses_are_stacked_and_sum_to_one(figure):
    areas = [line for line in figure.data if line.stackgroup == "mass"]
    assert [area.name for area in areas] == list(ledger.ATOM_TYPES)
    assert sum(area.y[0] for area in areas) == pytest.approx(1.0)


def test_lambda_has_its_own_axis_and_the_limits_are_drawn(figure):
    lines = {line.name: line for line in figure.data}
    assert lines["lambda_off"].yaxis != lines["p99_ema"].yaxis
    assert sorted(shape.y0 for shape in figure.layout.shapes) == [0.05, 0.15]
    assert {"limit 0.05", "delimiter cap 0.15"} <= {note.text for note in figure.layout.annotations}


def test_a_title_from_the_log_is_text(figure):
    assert figure.layout.title.text == r"&lt;b&gt;x&lt;/b&gt;\x1b"


def test_the_page_needs_no_network(traces):
    page = training_html(
        traces, p99_limit=0.05, delimiter_cap=0.15, title="</script><script>alert(1)</script>"
    )
    assert len(page) > 1_000_000  # plotly's own script is inside
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page)
    assert "<script>alert(1)" not in page


def test_a_run_without_traces_has_empty_charts():
    figure = training_figure({}, p99_limit=None, delimiter_cap=None)
    assert all(not line.x for line in figure.data)
    assert len(figure.layout.shapes) == 0
