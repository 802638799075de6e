"""Histories read as they grow are those that are read at once."""

from __future__ import annotations

import math
import sqlite3

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking import feed as feeds
from cedkv.tracking.feed import Feed
from cedkv.tracking.reader import metric_history
from cedkv.tracking.store import database_path
from cedkv.tracking.writer import RunWriter


@pytest.fixture(params=["file", "client"])
def feed(request: pytest.FixtureRequest, store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Read from the database file, and as any other store is."""
    if request.param == "client":
        monkeypatch.setattr(feeds, "open_database", lambda _: None)
    return Feed(store_uri)


def shown(feed: Feed, run_id: str) -> dict[str, list[tuple[int, str]]]:
    held = feed.refresh([run_id])[run_id]
    return {
        name: sorted((step, repr(value)) for step, value in zip(series.steps, series.values, strict=True))
        for name, series in held.items()
    }


def logged(run_id: str, uri: str, names: list[str]) -> dict[str, list[tuple[int, str]]]:
    whole = metric_history(run_id, names, uri)
    return {
        name: sorted((point.step, repr(point.value)) for point in points) for name, points in whole.items()
    }


def test_a_refresh_brings_what_was_logged_since(feed, store_uri):
    with RunWriter(store_uri, "cedkv") as run:
        for step in range(3):
            run.log_metrics({"a": step, "b": math.nan}, step)
            run.flush()
            assert shown(feed, run.run_id)["a"] == [(n, repr(float(n))) for n in range(step + 1)]
        run.log_metrics({"c": 1.5}, 7)
    assert shown(feed, run.run_id) == logged(run.run_id, store_uri, ["a", "b", "c", *shown(feed, run.run_id)])
    assert all(value == "nan" for _, value in shown(feed, run.run_id)["b"])


def test_runs_that_join_later_are_read_whole_and_others_are_kept(feed, store_uri):
    ids = []
    for value in (1.0, 2.0, 3.0):
        with RunWriter(store_uri, "cedkv") as run:
            run.log_metrics({"a": value}, 0)
        ids.append(run.run_id)
        feed.refresh(ids[:1] + ids[-1:])
    assert [feed.histories[run_id]["a"].values for run_id in ids] == [[1.0], [2.0], [3.0]]


def test_after_rows_were_erased_nothing_of_them_is_left(store_uri):
    feed = Feed(store_uri)
    with RunWriter(store_uri, "cedkv") as run:
        run.log_metrics({"a": 1.0}, 0)
    feed.refresh([run.run_id])
    with sqlite3.connect(database_path(store_uri)) as db:
        db.execute("DELETE FROM metrics WHERE run_uuid = ?", (run.run_id,))
    assert feed.refresh([run.run_id])[run.run_id] == {}


def test_ids_that_are_malformed_and_stores_that_are_not_there_are_refused(store_uri, tmp_path):
    with pytest.raises(UserError, match="32 lower-case hex"):
        Feed(store_uri).refresh(["../x"])
    with pytest.raises(UserError):
        Feed(f"sqlite:///{tmp_path}/absent.db").refresh(["a" * 32])
