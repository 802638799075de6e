"""What a desk remembers, and what it must not."""

from __future__ import annotations

import threading

from cedkv import ledger
from cedkv.config import yaml12
from cedkv.report.dashboard.spec import Limit, Page
from cedkv.tracking.writer import RunWriter
from cedkv.train.desk import Desk

LIMIT = Limit(at="phase3.thresholds.off_delta_p99_max")
CONFIG = yaml12.dump({"phase3": {"thresholds": {"off_delta_p99_max": 0.05}}})


def test_a_run_that_has_just_started_gets_its_limits_when_it_logs_them(store_uri):
    desk = Desk("cedkv", store_uri, [])
    with RunWriter(store_uri, "cedkv") as run:
        (before,) = desk.view([run.run_id]).runs
        assert before.limit(LIMIT) is None
        assert before.verdict() is None
        run.log_text(ledger.CONFIG_RESOLVED, CONFIG)
        run.flush()
        (after,) = desk.view([run.run_id]).runs
        assert after.limit(LIMIT) == 0.05
        assert after.rows(ledger.TABLE_STRESS) is None
        run.log_jsonl(ledger.TABLE_STRESS, [{"stress_delta": 1.0}])
    (ended,) = desk.view([run.run_id]).runs
    assert ended.rows(ledger.TABLE_STRESS) == [{"stress_delta": 1.0}]
    assert ended.verdict() is not None


def test_runs_of_other_experiments_and_deleted_ones_are_left_out(store_uri):
    from cedkv.tracking.store import open_client

    ids = []
    for experiment in ("cedkv", "cedkv", "other"):
        with RunWriter(store_uri, experiment) as run:
            pass
        ids.append(run.run_id)
    open_client(store_uri).delete_run(ids[1])
    view = Desk("cedkv", store_uri, []).view([*ids, "f" * 32])
    assert [run.record.run_id for run in view.runs] == ids[:1]
    assert [run.run_id for run in view.listed] == ids[:1]


def test_readers_draw_while_others_refresh(store_uri):
    from cedkv.report.dashboard.draw import draw_page

    page = Page.model_validate(
        {"page": "p", "panels": [{"kind": "line", "title": "t", "metrics": ["loss/*"], "log": True}]}
    )
    desk = Desk("cedkv", store_uri, [page])
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                draw_page(page, desk.view([run.run_id]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    with RunWriter(store_uri, "cedkv") as run:
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for step in range(60):
            run.log_metrics({f"loss/{name}": 1.0 + step for name in range(step)}, step)
            run.flush()
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    (drawn,) = draw_page(page, desk.view([run.run_id]))
    assert len(drawn.figure.data) == 59
