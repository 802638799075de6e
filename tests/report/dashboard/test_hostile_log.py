"""Whatever stands in a log, every shipped page is drawn: artifacts and tags come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedkv import ledger
from cedkv.report.dashboard.alerts import alerts_of, rules_of
from cedkv.report.dashboard.draw import draw_page
from cedkv.report.dashboard.html import to_html
from cedkv.report.dashboard.pages import read_pages

PAGES = read_pages(Path(__file__).parents[3] / "dashboards")
KEYS = sorted(
    {
        *("step", "document", "slot", "mass", "cap", "change", "proxy", "kl", "prompt", "family", "state"),
        *("stress_delta", "base_top", "student_top"),
    }
)
ARTIFACTS = sorted({panel.rows for page in PAGES for panel in page.panels if hasattr(panel, "rows")})
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), json_values, max_size=8), max_size=5
)
series = st.dictionaries(st.integers(0, 50), st.floats(), min_size=1, max_size=5)
METRICS = (
    ledger.P99_STRESS,
    ledger.P99_RAW,
    ledger.LAMBDA_OFF,
    ledger.DELIMITER_SLOT_MAX,
    "atom_mass/value",
    "perf/seconds_load",
)


logs = st.fixed_dictionaries(
    {
        "history": st.dictionaries(st.sampled_from(METRICS), series),
        "rows": st.dictionaries(st.sampled_from(ARTIFACTS), rows),
        "name": st.text(),
        "tags": st.dictionaries(
            st.sampled_from(["cedkv.acknowledged.delimiter-mass-near-cap", "cedkv.phase"]), st.text()
        ),
        "config": st.dictionaries(st.just("phase3"), json_values),
    }
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(logs)
def test_every_page_of_any_log_is_drawn(looks, log):
    run, other = looks.run(**log), looks.run(**log, run_id="b" * 32)
    view = looks.view(run, other, baseline=other)
    for page in PAGES:
        for drawn in draw_page(page, view):
            if drawn.figure is not None:
                json.loads(drawn.figure.to_json())
    alerts_of(run, rules_of(PAGES))
    assert to_html(PAGES[:1], view, log["name"]).startswith("<!doctype html>")


def test_a_frame_or_group_may_be_anything(looks):
    odd = [
        {
            "step": step,
            "proxy": 1.0,
            "kl": 2.0,
            "mass": [0.1, "x", None],
            "document": [1],
            "family": {},
            "stress_delta": 1.0,
        }
        for step in ([1], {"a": 1}, None, "x", 3, 2.5, True)
    ]
    run = looks.run(rows=dict.fromkeys(ARTIFACTS, odd))
    drawn = [drawn for page in PAGES for drawn in draw_page(page, looks.view(run))]
    assert sum(one.figure is not None for one in drawn) >= 3
