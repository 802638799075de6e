"""The ledgers of an experiment: append-only, outliving the runs they speak of, safe with several writers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking.ledgers import enter_certified, enter_explored, read_ledgers
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter

A, B = "a" * 32, "b" * 32


@pytest.fixture
def experiment(store_uri: str) -> str:
    with RunWriter(store_uri, "ledgers") as run:
        pass
    return run.experiment_id


def test_entries_are_kept_under_their_own_names(store_uri: str, experiment: str) -> None:
    assert read_ledgers(experiment, store_uri).explored == {}
    enter_explored(experiment, A, 1000, store_uri)
    enter_explored(experiment, B, 2000, store_uri)
    enter_certified(experiment, A, {"run_id": B, "share": 0.01, "started_ms": 5}, store_uri)
    found = read_ledgers(experiment, store_uri)
    assert found.experiment == "ledgers"
    assert found.explored == {A: 1000, B: 2000}
    assert found.certified == {A: {"run_id": B, "share": 0.01, "started_ms": 5}}


def test_the_same_entry_again_changes_nothing(store_uri: str, experiment: str) -> None:
    for _ in range(2):
        enter_explored(experiment, A, 1000, store_uri)
    assert read_ledgers(experiment, store_uri).explored == {A: 1000}


def test_an_entry_outlives_its_run(store_uri: str) -> None:
    """Deleted, then erased by `mlflow gc`: nothing of the run is left, but its entry is."""
    with RunWriter(store_uri, "ledgers", tags={"phase3_explore": "true"}) as run:
        pass
    enter_explored(run.experiment_id, run.run_id, run.start_time_ms, store_uri)
    client = open_client(store_uri)
    client.delete_run(run.run_id)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "gc",
        "--backend-store-uri",
        store_uri,
        "--run-ids",
        run.run_id,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"MLFLOW_TRACKING_URI": store_uri},
    )
    assert done.returncode == 0, done.stderr
    assert client.search_runs([run.experiment_id], run_view_type=3) == []
    assert read_ledgers(run.experiment_id, store_uri).explored == {run.run_id: run.start_time_ms}


def test_a_damaged_entry_still_counts(store_uri: str, experiment: str) -> None:
    client = open_client(store_uri)
    client.set_experiment_tag(experiment, f"cedkv.explored/{A}", "yesterday")
    client.set_experiment_tag(experiment, f"cedkv.certification/{B}", "[1, 2")
    found = read_ledgers(experiment, store_uri)
    assert (found.explored, found.certified) == ({A: 0}, {B: {}})


def test_what_is_no_run_id_is_refused(store_uri: str, experiment: str) -> None:
    with pytest.raises(UserError, match="32 lower-case hex digits"):
        enter_explored(experiment, "../x", 1, store_uri)


WRITER = """
import sys
from cedkv.tracking.ledgers import enter_explored
uri, experiment, digit = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for n in range(8):
    enter_explored(experiment, digit + f"{n:031x}", n, uri)
"""


def test_two_writers_lose_nothing(store_uri: str, experiment: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, store_uri, experiment, digit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for digit in "cd"
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    outcomes = [writer.communicate("go\n", timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outcomes
    assert len(read_ledgers(experiment, store_uri).explored) == 16
