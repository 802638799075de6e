"""Runs that end badly, in processes of their own: what the signal does, what the exit status is, what the log says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.tracking.reader import read_run
from cedkv.tracking.record import RunRecord

# One process imports mlflow (seconds) and forks a child for every ending; a child then runs to the end of the script
# like any program. The first process reports the children's exit statuses.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from cedkv.tracking.writer import RunWriter

folder, uri, *names = sys.argv[1:]
children = {}
for how in names:
    if (pid := os.fork()) == 0:
        sys.stdout = Path(folder, how + ".out").open("w", buffering=1)
        sys.stderr = Path(folder, how + ".err").open("w", buffering=1)
        break
    children[how] = pid
else:
    print(json.dumps(children), flush=True)
    print(json.dumps({how: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for how, pid in children.items()}))
    sys.exit()

# A shell or nohup may have started the tests with these ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with RunWriter(uri, "endings", name=how) as run:
    for step in range(100):
        run.log_metrics({"loss": step}, step)
    if how == "slow close":  # the store is slow to take the last record: time for a second signal
        deliver = run._outbox._deliver
        run._outbox._deliver = lambda records: (print("closing"), time.sleep(1), deliver(records))
        run.log_metrics({"loss": 100}, 100)
    print(run.run_id)
    if how == "exception":
        raise ValueError("boom")
    if how == "exit 3":
        sys.exit(3)
    if how == "exit 0":
        sys.exit(0)
    time.sleep(60)
"""

#                 signals sent, exit status, terminal status, cedkv.error
ENDINGS: dict[str, tuple[list[signal.Signals], int, str, str | None]] = {
    "exception": ([], 1, "FAILED", "ValueError: boom"),
    "exit 3": ([], 3, "FAILED", "exit status 3"),
    "exit 0": ([], 0, "FINISHED", None),
    "SIGTERM": ([signal.SIGTERM], 128 + signal.SIGTERM, "KILLED", "terminated by SIGTERM"),
    "SIGHUP": ([signal.SIGHUP], 128 + signal.SIGHUP, "KILLED", "terminated by SIGHUP"),
    "Ctrl-C": ([signal.SIGINT], -signal.SIGINT, "KILLED", "interrupted from the keyboard"),
    "slow close": (
        [signal.SIGTERM] * 2 + [signal.SIGINT],
        128 + signal.SIGTERM,
        "KILLED",
        "terminated by SIGTERM",
    ),
    "SIGKILL": ([signal.SIGKILL], -signal.SIGKILL, "RUNNING", None),
}

Outcome = tuple[RunRecord, int, str]


@pytest.fixture(scope="module")
def ended(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every ending, all at once on one store: its record, its exit status, its stderr."""
    folder = tmp_path_factory.mktemp("endings")
    (folder / "mlflow.db").write_bytes(store_template.read_bytes())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), uri, *ENDINGS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert program.stdout
    pids = json.loads(program.stdout.readline())
    run_ids = {name: _line(folder / f"{name}.out", 32) for name in ENDINGS}
    for name, (signals, *_) in ENDINGS.items():
        for number, signum in enumerate(signals):
            if number == 1:
                _line(
                    folder / f"{name}.out", len("closing")
                )  # the ending that the first signal began goes on
            os.kill(pids[name], signum)
    codes = json.loads(program.communicate(timeout=90)[0])
    return {
        name: (read_run(run_ids[name], uri), codes[name], (folder / f"{name}.err").read_text())
        for name in ENDINGS
    }


def _line(file: Path, length: int) -> str:
    """The line of ``length`` characters in ``file``, as soon as it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
            if len(line) == length + 1:
                return line.strip()
        time.sleep(0.02)
    pytest.fail(f"{file.name} is still {file.read_text() if file.exists() else 'missing'!r}")


@pytest.mark.parametrize("name", ENDINGS)
def test_the_status_is_honest_and_the_exit_status_the_usual_one(ended: dict[str, Outcome], name: str) -> None:
    record, code, err = ended[name]
    _, expected_code, status, reason = ENDINGS[name]
    assert (record.status, code) == (status, expected_code), err
    assert record.tags.get(ledger.TAG_ERROR) == reason
    if name != "SIGKILL":
        assert record.metrics["loss"] == (100 if name == "slow close" else 99), (
            "the flush came before the status"
        )
        assert record.end_time_ms is not None


@pytest.mark.parametrize("name", ["exit 3", "exit 0", "SIGTERM", "SIGHUP", "slow close"])
def test_an_orderly_end_prints_nothing_but_the_advice(ended: dict[str, Outcome], name: str) -> None:
    lines = ended[name][2].splitlines()
    advice = (
        ["finishing the log; press Ctrl-C again (3 in all) to abandon it"] if name == "slow close" else []
    )
    assert lines == advice
