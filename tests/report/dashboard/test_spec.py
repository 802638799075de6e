"""Pages: those that ship mean something, and those that are broken say where and how."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.config.reference import keys
from cedkv.core.errors import UserError
from cedkv.report.dashboard import pages, spec
from cedkv.report.dashboard.reference import refreshed

FOLDER = Path(__file__).parents[3] / "dashboards"
PAGES = pages.read_pages(FOLDER)
LEDGER = {value for name, value in vars(ledger).items() if name.isupper() and isinstance(value, str)} | {
    *map(ledger.atom_mass, ledger.ATOM_TYPES),
    *map(ledger.seconds, ledger.PARTS),
}
GOOD = "page: One\npanels:\n  - {kind: number, title: t, metric: on_gain}\n"


def metrics_of(panel: spec.Panel) -> list[str]:
    found = []
    for name in ("metric", "metrics", "right", "stairs", "marks", "over", "bound"):
        held = getattr(panel, name, None)
        found += [held] if isinstance(held, str) else [item for item in held or () if isinstance(item, str)]
    if isinstance(panel, spec.Runs):
        found += [panel.x, panel.y]
    return found


def limits_of(held: spec.Section) -> list[spec.Limit]:
    found: list[spec.Limit] = []
    for name in type(held).model_fields:
        value = getattr(held, name)
        found += [
            item for item in (value if isinstance(value, tuple) else [value]) if isinstance(item, spec.Limit)
        ]
    return found


def test_the_pages_that_the_reviewers_ask_for_ship_in_this_order():
    assert [page.slug for page in PAGES] == [
        *("verdict", "delimiter_mass", "dual", "alignment", "tail", "tradeoff", "time", "study")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.slug)
def test_every_metric_artifact_and_key_of_a_shipped_page_exists(page):
    known_keys = {key.path for key in keys()}
    for panel in page.panels:
        for pattern in metrics_of(panel):
            assert any(fnmatchcase(name, pattern) for name in LEDGER), (panel.title, pattern)
        rows = getattr(panel, "rows", None)
        assert rows is None or rows in LEDGER or rows in spec.BUILT_IN, (panel.title, rows)
    for rule in page.warnings:
        assert rule.metric in LEDGER
        assert rule.behind is None or rule.behind in LEDGER
    for holder in (*page.panels, *page.warnings):
        for limit in limits_of(holder):
            for value in (limit.at, limit.times):
                assert not isinstance(value, str) or value in known_keys, (page.page, value)


def test_the_reference_is_the_schema():
    page = (FOLDER / "README.md").read_text()
    assert refreshed(page) == page, "run python -m cedkv.report.dashboard dashboards/README.md"
    for model in (spec.Page, spec.Limit, spec.Rule, spec.Line, spec.Table):
        for name in model.model_fields.keys() - {"kind"}:
            assert f"| `{name}` |" in page


def test_the_small_page_of_the_readme_is_one(tmp_path):
    text = (FOLDER / "README.md").read_text()
    (tmp_path / "small.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    (page,) = pages.read_pages(tmp_path)
    assert (page.page, len(page.panels), len(page.warnings)) == ("Slot mass", 2, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("page: One\npanels: []\n", "panels = '[]': must have at least 1 item(s)"),
        ("panels:\n  - {kind: number, title: t, metric: m}\n", "page: is missing"),
        (GOOD + "colour: red\n", "colour: unknown key"),
        ("page: One\npanels:\n  - {kind: pie, title: t}\n", "panels[0].kind = 'pie': must be one of"),
        ("page: One\npanels:\n  - {title: t}\n", "panels[0].kind: is missing"),
        ("page: One\npanels:\n  - {kind: number, title: t}\n", "panels[0].metric: is missing"),
        (
            "page: One\npanels:\n  - {kind: number, title: t, metric: 'a<b'}\n",
            "panels[0].metric = 'a<b': must match",
        ),
        (GOOD + "warnings:\n  - {name: a, level: error, metric: m, says: s}\n", "give one of over and under"),
        (
            GOOD + "warnings:\n  - {name: a, level: error, metric: 'm*', over: {at: 1}, says: s}\n",
            "a rule looks at one metric",
        ),
        (
            GOOD + "warnings:\n  - {name: a, level: fatal, metric: m, over: {at: 1}, says: s}\n",
            "level = 'fatal'",
        ),
        ("page: !!python/object:os.system One\n", "tags are not allowed"),
        ("- 1\n", "a configuration is a mapping"),
    ],
)
def test_a_broken_page_is_refused_with_place_rule_and_remedy(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        pages.read_pages(tmp_path)
    assert told in str(refused.value)
    assert "mine.yaml" in str(refused.value)


def test_two_rules_of_one_name_two_pages_of_one_title_and_bad_file_names_are_refused(tmp_path):
    rule = "warnings:\n  - {name: a, level: error, metric: m, over: {at: 1}, says: s}\n"
    (tmp_path / "a.yaml").write_text(GOOD + rule)
    (tmp_path / "b.yaml").write_text(GOOD.replace("One", "Two") + rule)
    with pytest.raises(UserError, match="warning rule 'a' stands in"):
        pages.read_pages(tmp_path)
    (tmp_path / "b.yaml").write_text(GOOD)
    with pytest.raises(UserError, match="page 'One' stands in"):
        pages.read_pages(tmp_path)
    (tmp_path / "b.yaml").unlink()
    (tmp_path / "a b.yaml").write_text(GOOD)
    with pytest.raises(UserError, match="a page's file is its address"):
        pages.read_pages(tmp_path)


def test_a_folder_without_pages_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="--pages"):
        pages.read_pages(tmp_path)
    with pytest.raises(UserError, match="--pages"):
        pages.read_pages(tmp_path / "absent")
