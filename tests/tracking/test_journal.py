"""The journal: what was logged comes back in order, once, whatever happened to the process, the disk or the store."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cedkv.tracking.journal import IN_MEMORY, BusyError, Journal, JournalFullError


def numbered(number: int) -> dict[str, object]:
    return {"kind": "metrics", "points": [["x", float(number), 0, number]]}


def drained(journal: Journal, most: int = 7) -> list[dict[str, object]]:
    found = []
    while records := journal.take(most):
        assert journal.take(most) == records, "what is not confirmed is given again"
        journal.confirm(len(records))
        found += records
    return found


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_records_come_back_once_and_in_order_through_any_number_of_deaths(tmp_path_factory, data):
    """A death: the journal is opened again without having been closed in order; a torn line may stand at its end."""
    folder = tmp_path_factory.mktemp("journal")
    written, seen = 0, []
    with ExitStack() as held:
        journal = held.enter_context(Journal(folder))
        for action in data.draw(st.lists(st.sampled_from(["write", "read", "die", "tear"]), max_size=40)):
            if action == "write":
                for _ in range(data.draw(st.integers(1, 5))):
                    journal.append(numbered(written))
                    written += 1
            elif action == "read":
                records = journal.take(data.draw(st.integers(1, 6)))
                journal.confirm(len(records))
                seen += records
            else:
                journal.close()
                if action == "tear":
                    with (folder / "journal.jsonl").open("ab") as file:
                        file.write(data.draw(st.binary(max_size=20)).replace(b"\n", b""))
                journal = held.enter_context(Journal(folder))
        seen += drained(journal)
        assert journal.empty
    assert seen == [numbered(n) for n in range(written)]


def test_floats_come_back_to_the_bit_and_so_does_what_is_no_number(tmp_path):
    values = [0.1, 1e-310, -0.0, float("nan"), 1.7976931348623157e308, 2.0**-1074]
    with Journal(tmp_path) as journal:
        journal.append({"kind": "metrics", "points": [["x", v, 1, 2] for v in values]})
        ((record),) = journal.take(5)
    assert [repr(point[1]) for point in record["points"]] == [repr(v) for v in values]


def test_a_journal_is_open_in_one_place(tmp_path):
    with Journal(tmp_path), pytest.raises(BusyError, match="open in another process"):
        Journal(tmp_path)
    Journal(tmp_path).close()


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, journal: Journal, room: int) -> Iterator[None]:
    """The journal's file takes `room` more bytes, as on a full disk: the write that does not fit is cut, the next fails."""
    real, left = journal._file, [room]

    class Full:
        def write(self, line: bytes) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken, left[0] = min(left[0], len(line)), left[0] - min(left[0], len(line))
            return real.write(line[:taken])

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_file", Full())
        yield


def test_where_the_disk_is_full_records_wait_in_memory_and_keep_their_order(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.append(numbered(0))
        with full_disk(monkeypatch, journal, room=20):  # the first one is torn
            journal.append(numbered(1))
            with pytest.raises(OSError, match="No space left"):
                journal.secure()
        journal.append(numbered(2))  # there is room again; but the one before is in memory
        journal.append_file({"kind": "file", "path": "a/b.txt"}, lambda p: p.write_text("b"), lambda: b"b")
        found = drained(journal)
        assert found[:3] == [numbered(0), numbered(1), numbered(2)]
        assert found[3] == {"kind": "file", "path": "a/b.txt", "content": b"b"}
        journal.append(numbered(4))
        journal.secure()
        assert drained(journal) == [numbered(4)]
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [numbered(0), numbered(4)], "no torn line is left"


def test_a_file_that_does_not_fit_is_kept_in_memory(tmp_path):
    def write(place: Path) -> None:
        place.write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path) as journal:
        journal.append_file({"kind": "file", "path": "t.txt"}, write, lambda: b"half")
        assert journal.take(1) == [{"kind": "file", "path": "t.txt", "content": b"half"}]
        assert not list(tmp_path.glob("files/*/*"))


def test_memory_has_an_end_that_is_told(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal, full_disk(monkeypatch, journal, room=0):
        with pytest.raises(JournalFullError, match="is full and 0 MiB wait in memory"):
            journal.append_file(
                {"kind": "file", "path": "t"},
                lambda _: (_ for _ in ()).throw(OSError(28, "")),
                lambda: b"x" * (IN_MEMORY + 1),
            )
        journal.append(numbered(1))


def test_confirmed_files_are_gone_and_the_others_keep_their_names(tmp_path):
    with Journal(tmp_path) as journal:
        for text in ("one", "two"):
            journal.append_file(
                {"kind": "file", "path": "same/name.txt"},
                lambda place, text=text: place.write_text(text),
                text.encode,
            )
        first, second = journal.take(2)
        journal.confirm(1)
        assert not (tmp_path / first["file"]).exists()
        assert (tmp_path / second["file"]).read_text() == "two"
        assert Path(second["file"]).name == "name.txt"


@given(st.binary(max_size=300))
@example(b"\n" + b"[" * 100_000 + b"\n")
@settings(max_examples=200, deadline=None)
def test_a_damaged_journal_gives_what_it_holds_and_never_an_error(tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder, {"run_id": "x"}) as journal:
        journal.append(numbered(1))
    for name in ("journal.jsonl", "sent", "run.json"):
        with (folder / name).open("ab") as file:
            file.write(noise)
    with Journal(folder) as journal:
        assert isinstance(journal.header, dict)
        found = drained(journal)
        assert journal.empty
    assert found[0] == numbered(1)
    assert all(isinstance(record, dict) for record in found)
