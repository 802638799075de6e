"""The thread that sends: order, patience with a store that is away, and an honest end with one that refuses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cedkv.tracking import outbox as module
from cedkv.tracking.backend import MlflowException, TrackingError
from cedkv.tracking.delivery import batch_of, may_pass
from cedkv.tracking.journal import Journal
from cedkv.tracking.outbox import Outbox

Record = dict[str, Any]


def metrics(*numbers: int) -> Record:
    return {"kind": "metrics", "points": [["x", float(n), 0, n] for n in numbers]}


def numbers_of(records: Sequence[Record]) -> list[int]:
    return [point[3] for record in records if record["kind"] == "metrics" for point in record["points"]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as made:
        yield made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.05)


def test_records_keep_their_order_and_requests_their_size(journal: Journal) -> None:
    seen: list[list[Record]] = []
    outbox = Outbox(journal, lambda records: seen.append(list(records)))
    for first in range(0, 5000, 50):
        outbox.put(metrics(*range(first, first + 50)))
        if first == 2500:
            outbox.put({"kind": "tags", "tags": {"a": "b"}})
    outbox.close(10)
    flat = [number for records in seen for number in numbers_of(records)]
    assert flat == list(range(5000))
    kinds = [records[0]["kind"] for records in seen]
    assert kinds.count("tags") == 1
    before = sum(len(numbers_of(records)) for records in seen[: kinds.index("tags")])
    assert before == 2550, "the tag is behind what was put before it"
    assert max(len(numbers_of(records)) for records in seen) <= 1000
    assert journal.empty


def test_a_store_that_is_away_is_tried_until_it_is_back_and_the_loop_does_not_wait(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    back = threading.Event()

    def deliver(records: Sequence[Record]) -> None:
        if not back.is_set():
            raise ConnectionError("refused")
        seen.extend(numbers_of(records))

    with caplog.at_level(logging.WARNING):
        outbox = Outbox(journal, deliver, linger_s=0)
        begun = time.monotonic()
        for number in range(3000):
            outbox.put(metrics(number))
        assert time.monotonic() - begun < 2
        outbox.secure()
        time.sleep(0.1)
        back.set()
        outbox.close(10)
    assert seen == list(range(3000))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once when it goes, once when it is back"
    assert "does not answer (refused)" in told[0]
    assert told[1] == "the tracking store is back"


def test_what_was_taken_before_an_answer_was_lost_is_sent_again(journal: Journal) -> None:
    """The store may have it twice offered; that it keeps it once is tested with real stores."""
    offered: list[list[int]] = []

    def deliver(records: Sequence[Record]) -> None:
        offered.append(numbers_of(records))
        if len(offered) == 1:
            raise TimeoutError("no answer")

    outbox = Outbox(journal, deliver)
    outbox.put(metrics(1, 2))
    outbox.close(10)
    assert offered == [[1, 2], [1, 2]]


def test_a_refusal_is_raised_by_the_next_call_and_by_close_with_what_is_missing(journal: Journal) -> None:
    def refuse(_: Sequence[Record]) -> None:
        raise MlflowException("the run is gone", error_code=1000)

    outbox = Outbox(journal, refuse)
    outbox.put(metrics(1, 2, 3))
    with pytest.raises(TrackingError, match="3 records were not written") as caught:
        outbox.flush(10)
    assert isinstance(caught.value.__cause__, MlflowException)
    for call in (lambda: outbox.put(metrics(4)), lambda: outbox.close(10)):
        with pytest.raises(TrackingError, match="3 records were not written"):
            call()
    assert numbers_of(journal.take(9)) == [1, 2, 3], "nothing is thrown away"


def test_a_store_that_hangs_ends_the_wait_with_the_count_and_the_remedy(journal: Journal) -> None:
    release = threading.Event()
    outbox = Outbox(journal, lambda _: release.wait(10))
    outbox.put(metrics(1, 2))
    with pytest.raises(
        TrackingError, match=r"does not take what is logged; 2 records wait in .*`cedkv sync` sends them"
    ):
        outbox.close(0.2)
    release.set()


def test_nothing_is_taken_after_the_close(journal: Journal) -> None:
    outbox = Outbox(journal, lambda _: None)
    outbox.close(5)
    with pytest.raises(TrackingError, match="has ended"):
        outbox.put(metrics(1))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionError("refused"), True),
        (OSError(28, "No space left on device"), True),
        (MlflowException("(sqlite3.OperationalError) database is locked"), True),
        (MlflowException("API request failed with error code 503"), True),
        (MlflowException("(sqlite3.DatabaseError) database disk image is malformed"), False),
        (MlflowException("no run", error_code=3002), False),
        (FileNotFoundError("files/3/a.json"), False),
        (TrackingError("the database was replaced"), False),
        (TypeError("a bug"), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error: BaseException, passes: bool) -> None:
    assert may_pass(error) == passes


def test_a_request_holds_what_belongs_together() -> None:
    tags, file = {"kind": "tags", "tags": {}}, {"kind": "file", "path": "x"}
    many = [metrics(*range(600))] * 3
    assert batch_of([metrics(1), metrics(2), tags]) == [metrics(1), metrics(2)]
    assert batch_of([tags, metrics(1)]) == [tags]
    assert batch_of([file, file]) == [file]
    assert batch_of(many) == many[:1]
    assert batch_of([]) == []
