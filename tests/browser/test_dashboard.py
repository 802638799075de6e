"""The dashboard as a reviewer sees it: real pages in a real browser, over real runs."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.cli import main
from cedkv.report.dashboard.pages import read_pages
from cedkv.tracking.reader import metric_history, read_rows, read_run
from cedkv.tracking.writer import RunWriter
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[2]
PAGES = {page.slug: page for page in read_pages(ROOT / "dashboards")}
DRAWN = """() => document.querySelector('h2') && [...document.querySelectorAll('.panel')].every(
  panel => panel.querySelector('.empty, .tile, table, .main-svg'))"""


def points(page, graph):
    """The traces of a figure as the browser has them: name to (x, y)."""
    return page.evaluate(
        "id => Object.fromEntries(document.getElementById(id).querySelector('.js-plotly-plot')._fullData"
        ".map(trace => [trace.name, [Array.from(trace.x), Array.from(trace.y)]]))",
        graph,
    )


@pytest.mark.parametrize("slug", PAGES)
def test_every_page_loads_with_all_its_panels(page, shown, slug):
    page.goto(shown.page(slug, "trained", "baseline"))
    page.wait_for_selector(".panels")
    page.wait_for_function(DRAWN)
    titles = page.locator(".panel h3").all_inner_texts()
    assert titles == [panel.title for panel in PAGES[slug].panels]
    assert page.locator("nav [aria-current=page]").inner_text() == PAGES[slug].page


def test_what_a_figure_shows_is_what_was_logged(page, shown):
    page.goto(shown.page("dual", "trained"))
    page.wait_for_function(DRAWN)
    drawn = points(page, "dual-0")
    for name in ("p99_raw", "p99_ema", "lambda_off"):
        history = metric_history(shown.runs["trained"], [name], shown.store)[name]
        by_step = {point.step: point.value for point in history}
        assert drawn[name] == [sorted(by_step), [by_step[step] for step in sorted(by_step)]]


def test_other_runs_are_chosen_from_the_list_and_kept_in_the_address(page, shown):
    page.goto(shown.page("verdict", "trained"))
    page.wait_for_selector(".tile")
    assert page.locator(".tile").count() == 3
    page.locator("#runs").click()
    page.get_by_role("option").filter(has_text="the baseline").first.click()
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 6")
    assert shown.runs["baseline"] in page.url
    assert shown.runs["trained"] in page.url
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Tail").click()
    page.wait_for_function("() => document.querySelector('h2')?.innerText === 'Tail'")
    assert shown.runs["baseline"] in page.url


def test_a_run_that_is_being_written_grows_before_the_readers_eyes(page, shown):
    with RunWriter(shown.store, "cedkv", name="alive", tags={"cedkv.phase": "3"}) as run:
        run.log_metrics({"phase3_loss": 3.0, "p99_raw": 1.0}, 0)
        run.flush()
        page.goto(f"{shown.url}/dual?runs={run.run_id}")
        page.wait_for_function(DRAWN)
        assert points(page, "dual-0")["p99_raw"] == [[0], [1.0]]
        run.log_metrics({"phase3_loss": 2.0, "p99_raw": 0.5}, 5)
        run.flush()
        page.wait_for_function(
            "() => document.getElementById('dual-0').querySelector('.js-plotly-plot')._fullData"
            ".some(trace => trace.name === 'p99_raw' && trace.x.length === 2)"
        )
        assert points(page, "dual-0")["p99_raw"] == [[0, 5], [1.0, 0.5]]


def test_a_warning_is_acknowledged_with_a_note_that_the_run_keeps(page, shown):
    page.goto(shown.page("warnings", "baseline"))
    page.wait_for_selector(".alert")
    alert = page.locator(".alert").filter(has_text="Not acknowledged").first
    rule = alert.locator("h3").inner_text().partition(": ")[2]
    alert.get_by_role("button", name="Acknowledge").click()
    page.get_by_text("Write a note first.").wait_for()
    alert.get_by_role("textbox").fill(f"seen {'<b>it</b>'}")
    alert.get_by_role("button", name="Acknowledge").click()
    page.get_by_text("Acknowledged: seen <b>it</b>").wait_for()
    tags = read_run(shown.runs["baseline"], shown.store).tags
    assert "seen <b>it</b>" in tags[f"cedkv.acknowledged.{rule}"]


def test_what_is_typed_survives_the_refreshes(page, shown):
    page.goto(shown.page("warnings", "hostile"))
    box = page.locator(".alert").get_by_role("textbox").first
    box.fill("half a sen")
    page.wait_for_timeout(7000)  # two refreshes
    assert box.input_value() == "half a sen"


@pytest.mark.parametrize("slug", ["verdict", "tail", "tradeoff", "dual", "warnings"])
def test_hostile_names_are_shown_as_text(page, shown, slug):
    page.goto(shown.page(slug, "hostile", "trained"))
    page.wait_for_selector("h2")
    page.wait_for_function(DRAWN)
    text = page.locator("body").inner_text()
    assert "<script>alert(1)</script>" in text
    assert "\u202e" not in page.content()


def test_a_page_fits_a_telephone_and_the_keyboard_reaches_its_links(browser, shown):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto(shown.page("tail", "trained"))
    page.wait_for_function(DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function("getComputedStyle(document.body).backgroundColor !== '" + dark + "'")
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText"))
    assert {"Verdict", "Tail", "Time"} <= reached
    context.close()


def test_no_run_no_page_and_no_store_say_what_to_do(page, shown):
    page.goto(f"{shown.url}/tail?runs=none")
    page.get_by_text("No run is chosen: choose one above.").first.wait_for()
    page.goto(f"{shown.url}/nowhere")
    page.get_by_text("There is no page 'nowhere': choose one above.").wait_for()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_strangers_request_is_refused(shown, headers):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(shown.url, headers=headers), timeout=10)  # noqa: S310 - our own
    refused.value.close()
    assert refused.value.code == 403


def test_the_report_as_one_file_draws_without_a_network(page, shown, tmp_path):
    target = tmp_path / "report.html"
    ids = [shown.runs["trained"], shown.runs["hostile"]]
    assert main(["report", *ids, "--html", str(target), "--tracking-uri", shown.store]) == 0
    page.context.set_offline(True)
    page.goto(target.as_uri())
    about_runs = [page for page in PAGES.values() if page.of == "runs"]
    assert page.locator("main > section").count() == len(about_runs) == len(PAGES) - 1
    page.locator("#dual-0").scroll_into_view_if_needed()
    page.wait_for_selector("#dual-0 .main-svg")
    traces = page.evaluate("document.getElementById('dual-0')._fullData.length")
    assert traces == 6  # three metrics of two runs
    assert "<script>alert(1)</script>" in page.locator("header").inner_text()


@pytest.mark.slow
def test_a_study_is_drawn_from_its_trials(page, shown, small_model, tmp_path, capsys):
    """Last, since its runs join those that the other tests look at."""
    space = tmp_path / "space.yaml"
    space.write_text(
        "space: {phase3.train.lambda_off.dual.eta: {low: 0.001, high: 5.0, log: true}}\n"
        "objective: {dual/lambda_std: 1.0}\npruning: {keep: 1.0}\n"
    )
    sets = [f"--set={override}" for override in (f"model.name_or_path={small_model}", *SMALL)]
    places = ["--experiment", "cedkv", "--tracking-uri", shown.store, "--out", str(tmp_path / "best.yaml")]
    smoke = str(ROOT / "configs" / "smoke.yaml")
    assert main(["tune", "--config", smoke, "--space", str(space), "--trials", "4", *places, *sets]) == 0
    run_id = capsys.readouterr().out.split("run ")[1][:32]
    page.goto(f"{shown.url}/study?runs={run_id}")
    page.wait_for_function(DRAWN)
    assert page.locator(".panel .empty").count() == 1  # nothing was confirmed at a larger scale
    kinds = [panel.kind for panel in PAGES["study"].panels]
    lines = page.evaluate(
        "id => document.getElementById(id).querySelector('.js-plotly-plot')._fullData.length",
        f"study-{kinds.index('parallel')}",
    )
    assert lines == 4
    rows = {row["trial"]: row for row in read_rows(run_id, ledger.TUNE_TRIALS, shown.store)}
    drawn = points(page, f"study-{kinds.index('trials')}")
    assert len(drawn) == 3
    for name, (steps, values) in drawn.items():
        trial = rows[int(name.partition("trial ")[2].partition(" ")[0])]
        assert ("best" in name) == (trial["rank"] < 3)
        history = metric_history(trial["runs"][0], ["lambda_off"], shown.store)["lambda_off"]
        by_step = {point.step: point.value for point in history}
        assert (steps, values) == (sorted(by_step), [by_step[step] for step in sorted(by_step)])
