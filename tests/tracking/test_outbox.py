from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from cedkv.tracking.backend import TrackingError
from cedkv.tracking.outbox import Outbox


def test_records_and_jobs_keep_their_order_and_batches_their_size() -> None:
    seen: list[list[int] | str] = []
    outbox: Outbox[int] = Outbox(lambda batch: seen.append(list(batch)), batch=10)
    for first in range(0, 100, 7):
        outbox.put(list(range(first, min(first + 7, 100))))
        if first == 49:
            outbox.put_job(lambda: seen.append("job"))
    outbox.close(10)
    flat = [item for part in seen for item in ([part] if part == "job" else part)]
    assert flat == [*range(56), "job", *range(56, 100)]
    assert max(len(part) for part in seen if part != "job") == 10


def test_a_slow_store_makes_the_loop_wait_instead_of_losing_records() -> None:
    seen: list[int] = []
    gate = threading.Semaphore(0)

    def slow(batch: Sequence[int]) -> None:
        gate.acquire()
        seen.extend(batch)

    outbox: Outbox[int] = Outbox(slow, capacity=2, batch=1, linger_s=0)
    done = threading.Event()

    def loop() -> None:
        for number in range(20):
            outbox.put([number])
        done.set()

    threading.Thread(target=loop).start()
    assert not done.wait(0.2), "the queue took 20 records although it holds 2"
    for _ in range(20):
        gate.release()
    assert done.wait(5)
    outbox.close(5)
    assert seen == list(range(20))


def test_an_error_is_raised_by_the_next_call_and_by_close_with_what_was_lost() -> None:
    def broken(batch: Sequence[int]) -> None:
        raise OSError(28, "No space left on device")

    outbox: Outbox[int] = Outbox(broken)
    outbox.put([1, 2, 3])
    with pytest.raises(TrackingError, match=r"3 records were not written: .*No space left") as caught:
        outbox.flush(10)
    assert isinstance(caught.value.__cause__, OSError)
    for call in (lambda: outbox.put([4]), lambda: outbox.put_job(print), lambda: outbox.close(10)):
        with pytest.raises(TrackingError, match="3 records were not written"):
            call()


def test_a_loop_that_waits_for_room_hears_of_an_error() -> None:
    entered = threading.Event()

    def broken(batch: Sequence[int]) -> None:
        entered.set()
        time.sleep(0.2)
        raise OSError("gone")

    outbox: Outbox[int] = Outbox(broken, capacity=1, batch=1, linger_s=0)
    outbox.put([1])
    assert entered.wait(5)
    outbox.put([2])
    with pytest.raises(TrackingError, match="2 records were not written"):
        outbox.put([3])


def test_a_store_that_hangs_ends_the_wait_with_the_count() -> None:
    release = threading.Event()
    outbox: Outbox[int] = Outbox(lambda batch: release.wait(10))
    outbox.put([1, 2])
    with pytest.raises(TrackingError, match=r"took no record for 0.2 s; 2 records wait"):
        outbox.close(0.2)
    release.set()


def test_nothing_is_taken_after_the_close() -> None:
    outbox: Outbox[int] = Outbox(lambda batch: None)
    outbox.close(5)
    with pytest.raises(TrackingError, match="has ended"):
        outbox.put([1])
