"""``cedkv warnings``, ``cedkv report --html`` and ``cedkv dashboard --check`` on runs of a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.cli import look, main
from cedkv.config import yaml12
from cedkv.tracking.reader import read_run
from cedkv.tracking.writer import RunWriter

ROOT = Path(__file__).parents[2]
CONFIG = {
    "phase3": {
        "thresholds": {"off_delta_p99_max": 0.05, "on_gain_min": 0.02},
        "candidate": {"delimiter": {"mass_cap": 0.15, "warn_ratio": 0.9}},
    }
}


@pytest.fixture
def runs(store_uri, monkeypatch):
    """A run that is well, and one whose tail and delimiters are not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.chdir(ROOT)
    ids = {}
    for name, p99, mass in (("well", 0.01, 0.02), ("ill", 0.3, 0.14)):
        with RunWriter(store_uri, "cedkv", name=name, tags={"cedkv.phase": "3"}) as run:
            run.log_text(ledger.CONFIG_RESOLVED, yaml12.dump(CONFIG))
            for step in range(3):
                metrics = {ledger.P99_STRESS: p99, ledger.DELIMITER_SLOT_MAX: mass if step else 0.0}
                run.log_metrics(metrics | {ledger.ON_GAIN: 0.5}, step)
            run.log_jsonl(
                ledger.DELIMITER_WARNINGS, [{"step": 1, "document": "<i>doc</i>", "slot": 2, "mass": mass}]
            )
        ids[name] = run.run_id
    return ids


def warned(capsys) -> list[dict[str, object]]:
    return json.loads(capsys.readouterr().out)


def test_a_run_that_is_well_has_no_warnings(runs, capsys):
    assert main(["warnings", runs["well"], "--fail-on", "info"]) == 0
    assert capsys.readouterr().out == "no warnings\n"


def test_warnings_name_level_run_rule_step_value_and_limit(runs, capsys):
    assert main(["warnings", "--format", "json"]) == 0  # the newest run is the ill one
    found = {alert["rule"]: alert for alert in warned(capsys)}
    assert found.keys() == {"off-tail-over-limit", "delimiter-mass-near-cap"}
    mass = found["delimiter-mass-near-cap"]
    assert (mass["level"], mass["run_id"], mass["step"], mass["value"]) == ("warning", runs["ill"], 1, 0.14)
    assert mass["limit"] == pytest.approx(0.135)
    assert mass["behind"][0]["document"] == "<i>doc</i>"
    assert main(["warnings", "--all"]) == 0
    table = capsys.readouterr().out
    assert "off-tail-over-limit" in table
    assert runs["ill"][:8] in table
    assert runs["well"][:8] not in table


def test_the_status_is_for_scripts_until_somebody_takes_note(runs, capsys, store_uri):
    assert main(["warnings", runs["ill"], "--fail-on", "error"]) == look.WARNED == 13
    note = ["--acknowledge", "off-tail-over-limit", "--note", "known; 한국어 <b>"]
    assert main(["warnings", runs["ill"], *note]) == 0
    assert main(["warnings", runs["ill"], "--fail-on", "error"]) == 0
    assert main(["warnings", runs["ill"], "--fail-on", "warning"]) == 13
    assert "acknowledged: known; 한국어 <b>" in capsys.readouterr().out
    tag = read_run(runs["ill"], store_uri).tags["cedkv.acknowledged.off-tail-over-limit"]
    assert json.loads(tag) == {"note": "known; 한국어 <b>"}


def test_a_run_may_be_named_by_the_beginning_of_its_id_as_reports_shorten_it(runs, capsys):
    assert main(["warnings", runs["ill"][:8], "--format", "json"]) == 0
    assert {alert["run_id"] for alert in warned(capsys)} == {runs["ill"]}
    for command in ("gate", "report"):
        main([command, runs["ill"][:8]])
        assert runs["ill"] in capsys.readouterr().out
    absent = "fffffff" if not runs["ill"].startswith("fffffff") else "eeeeeee"
    assert main(["gate", absent]) == 2
    assert "no run of experiment 'cedkv' in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--acknowledge", "no-such-rule", "--note", "x"], "warning rule 'no-such-rule' is none of"),
        (["--acknowledge", "lambda-rings"], "--acknowledge RULE needs the id of a run and --note TEXT"),
        (["--acknowledge", "lambda-rings", "--note", "  "], "the note is empty"),
        (["--pages", "nowhere"], "nowhere holds no page"),
        (["--experiment", "other"], "other"),
    ],
)
def test_mistakes_are_refused_with_the_remedy(runs, capsys, arguments, told):
    assert main(["warnings", runs["ill"], *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_report_as_one_file_shows_several_runs_and_stays_with_the_first(runs, capsys, store_uri, tmp_path):
    target = tmp_path / "report.html"
    assert main(["report", runs["ill"], runs["well"], "--html", str(target)]) == 0
    page = target.read_text()
    assert all(f"{name} ({run_id[:8]})" in page for name, run_id in runs.items())
    assert "&lt;i&gt;doc&lt;/i&gt;" in page
    (kept,) = Path(store_uri.removeprefix("sqlite:///")).parent.glob(
        f"**/{runs['ill']}/**/{ledger.REPORT_HTML}"
    )
    assert kept.read_text() == page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name runs by their ids, or give --latest"),
        (["{ill}", "--latest"], "name runs by their ids, or give --latest"),
        (["{ill}", "{well}"], "a report in text is on one run"),
        (["{ill}", "f" * 32, "--html", "x.html"], "is deleted or not in experiment 'cedkv'"),
        (["{ill}", "--html", "/nowhere/x.html"], "cannot be written"),
        (["nonsense", "--html", "x.html"], "32 lower-case hex digits"),
    ],
)
def test_reports_that_cannot_be_made_are_refused(runs, capsys, arguments, told):
    assert main(["report", *(argument.format(**runs) for argument in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not (ROOT / "x.html").exists()


def test_pages_are_checked_without_a_store(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["dashboard", "--check"]) == 0
    assert "8 pages are valid" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("page: One\npanels:\n  - {kind: pie, title: t}\n")
    assert main(["dashboard", "--check", "--pages", str(tmp_path)]) == 2
    assert "must be one of number, line" in capsys.readouterr().err
