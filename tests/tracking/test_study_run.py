"""The run of a study: several write to it, nobody owns it."""

from __future__ import annotations

from threading import Thread

import pytest

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.backend import MlflowClient, MlflowException, TrackingError
from cedkv.tracking.reader import metric_history, read_run
from cedkv.tracking.study_run import TRIES, mark_study_run, note_study, open_study_run


@pytest.fixture
def study(store_uri):
    return open_study_run(
        store_uri,
        "studies",
        "s",
        tags={ledger.TAG_STUDY: "s"},
        params={"space": {"a": 1}},
        files={ledger.TUNE_SPEC: "text"},
    )


def test_it_runs_until_it_is_marked_and_may_run_again(study, store_uri):
    states = []
    for status in ("FINISHED", "RUNNING", "FINISHED"):
        states.append(read_run(study, store_uri).status)
        mark_study_run(study, store_uri, status)
    states.append(read_run(study, store_uri).status)
    assert states == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]
    record = read_run(study, store_uri)
    assert (record.name, record.params["space.a"], record.is_study) == ("s", "1", True)


def test_two_workers_note_at_once_and_lose_nothing(study, store_uri):
    def note(worker: int) -> None:
        for step in range(5):
            note_study(
                study,
                store_uri,
                metrics={"tune/objective": worker},
                step=10 * worker + step,
                files={"a.json": "[1]"},
            )

    workers = [Thread(target=note, args=(number,)) for number in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    points = metric_history(study, ["tune/objective"], store_uri)["tune/objective"]
    assert [(point.step, point.value) for point in points] == [
        (10 * worker + step, worker) for worker in (1, 2) for step in range(5)
    ]


def test_a_store_that_refuses_once_is_asked_again_and_one_that_always_does_is_told(
    study, store_uri, monkeypatch
):
    log_batch, refusals = MlflowClient.log_batch, []

    def refuse(self, *given, **named):
        if len(refusals) < most:
            refusals.append(1)
            raise MlflowException("duplicate key value violates unique constraint")
        log_batch(self, *given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    most = 2
    note_study(study, store_uri, metrics={"tune/objective": 1.0}, step=0, files={})
    assert read_run(study, store_uri).metrics["tune/objective"] == 1.0
    most, refusals[:] = 2 * TRIES, []
    with pytest.raises(TrackingError, match="run of the study"):
        note_study(study, store_uri, metrics={"tune/objective": 2.0}, step=1, files={})
    assert len(refusals) == TRIES


def test_a_name_that_is_none_is_refused_before_anything_is_made(store_uri):
    with pytest.raises(UserError, match="experiment"):
        open_study_run(store_uri, "a\nb", "s", tags={}, params={}, files={})
