"""As a team has it: an `mlflow server` on PostgreSQL that keeps the artifacts, with several trainers and a judge at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cedkv import ledger
from cedkv.tracking.reader import metric_history, read_rows, read_run
from cedkv.tracking.store import open_client
from tests.tracking.conftest import wait_until_up

PASSWORD = "not-in-any-log-7f3a"  # noqa: S105 - of a database that lives for a minute


def _programs() -> Path | None:
    """Where PostgreSQL's own programs are: Debian keeps them off the path."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


pytestmark = [
    pytest.mark.slow,  # .ci/run runs two of them after the fast tests
    pytest.mark.skipif(_programs() is None, reason="no PostgreSQL: apt-get install postgresql"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of our own that asks for a password; its URI, which does not have it."""
    programs = _programs()
    assert programs is not None
    folder = tmp_path_factory.mktemp("postgres")
    (folder / "password").write_text(PASSWORD)
    become = []
    if os.geteuid() == 0:  # PostgreSQL refuses root
        become = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o055)
    data, port = folder / "data", free_port()

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*become, str(programs / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(
        *("initdb", "--pgdata", str(data), "--username", "mlflow", "--no-sync"),
        *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
    )
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    run(
        "pg_ctl", "--pgdata", str(data), "--wait", "--log", str(folder / "log"), "--options", options, "start"
    )
    try:
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")


@pytest.fixture(scope="module")
def team_server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server of mlruns/README.md, and its folder. The password comes by the environment."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    quiet = {
        "PGPASSWORD": PASSWORD,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "served")]
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}", server, folder / "log.txt")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


WRITES = """
import sys
from cedkv.tracking.writer import RunWriter

print("ready", flush=True)
sys.stdin.readline()
with RunWriter(sys.argv[1], "one experiment for all", params={"a": {"b": 1}}) as run:
    send, first = run._outbox._deliver, []

    def deliver(records):
        send(records)
        if not first:  # the answer to the first request is lost
            first.append(1)
            raise ConnectionError

    run._outbox._deliver = deliver
    for step in range(100):
        run.log_metrics({f"m{n}": step + n for n in range(5)}, step)
    run.log_json("rows.json", list(range(1000)))
print(run.run_id)
"""


def test_writers_that_start_at_once_share_one_experiment_and_lose_and_double_nothing(
    team_server: tuple[str, Path], tmp_path: Path
) -> None:
    uri, folder = team_server
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITES, uri],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    told = [writer.communicate("go\n", timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], told
    records = [read_run(out.strip(), uri) for out, _ in told]
    assert len({record.experiment_id for record in records}) == 1
    for record in records:
        assert record.status == "FINISHED"
        for name, points in metric_history(record.run_id, [f"m{n}" for n in range(5)], uri).items():
            assert [(p.step, p.value) for p in points] == [(n, n + int(name[1:])) for n in range(100)]
        (artifact,) = open_client(uri).list_artifacts(record.run_id)
        assert artifact.path == "rows.json"
        assert open_client(uri).get_run(record.run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((folder / "served").rglob("rows.json"))
    assert not list((tmp_path / "mlruns" / "spool").iterdir())


def test_two_trainers_and_a_judge_at_once_and_no_password_anywhere(
    team_server: tuple[str, Path], small_config, tmp_path: Path
) -> None:
    from cedkv.config import dump_yaml

    uri, folder = team_server
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(small_config("phase3.train.steps=30")))
    env = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PGPASSWORD": PASSWORD}
    env |= {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": PASSWORD}

    def cedkv(*arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "cedkv", *arguments]
        return subprocess.Popen(
            line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    (done,) = [cedkv("--config", str(file), "--phase", "2")]
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0, err
    trainers = [cedkv("--config", str(file)) for _ in range(2)]
    judged = []
    while any(trainer.poll() is None for trainer in trainers):
        judge = cedkv("gate", "--all", "--dry-run", "--format", "json")
        judge.communicate(timeout=120)
        judged.append(judge.returncode)
    told = [trainer.communicate() for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0, 0], told
    assert judged
    assert set(judged) <= {0, 10, 11}, "a verdict, never an error"
    runs = [line.split()[1] for text in (out, *(o for o, _ in told)) for line in text.splitlines()[:1]]
    records = [read_run(run_id, uri) for run_id in runs]
    assert [record.status for record in records] == ["FINISHED"] * 3
    assert records[1].metrics[ledger.P99_STRESS] == records[2].metrics[ledger.P99_STRESS]
    everything = [out, err, *(text for pair in told for text in pair), *map(str, records)]
    everything += [
        path.read_text(errors="replace")
        for root in (folder, tmp_path)
        for path in root.rglob("*")
        if path.is_file()
    ]
    assert not [text for text in everything if PASSWORD in text]


def test_workers_of_a_study_meet_in_the_database_as_across_machines(
    team_server: tuple[str, Path], database: str, small_config, tmp_path: Path
) -> None:
    """One worker has nothing of the other's but the server and the storage: they start in folders of their own."""
    from cedkv.config import dump_yaml

    uri, _ = team_server
    (tmp_path / "config.yaml").write_text(dump_yaml(small_config()))
    space = "space: {phase3.train.lr: {low: 0.01, high: 1.0}}\nobjective: {off_delta_p99_stress: 1.0}\npruning: {keep: 1.0}\n"
    (tmp_path / "space.yaml").write_text(space)
    env = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PGPASSWORD": PASSWORD}
    line = [sys.executable, "-m", "cedkv", "tune", "--config", f"{tmp_path}/config.yaml"]
    line += ["--space", f"{tmp_path}/space.yaml"]
    # MLflow's own database is none for studies: both keep the version of their tables under the same name.
    refused = subprocess.run(
        [*line, "--storage", database],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert refused.returncode == 2
    assert "a database of its own and not MLflow's" in refused.stderr
    with psycopg.connect(database, password=PASSWORD, autocommit=True) as connection:
        connection.execute("CREATE DATABASE studies")
    line += ["--trials", "6", "--storage", database.replace("/postgres", "/studies")]
    workers = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        workers.append(
            subprocess.Popen(
                line, cwd=tmp_path / name, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    told = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    (run_id,) = {re.findall(r"run ([0-9a-f]{32}): 6 trials are run", out)[0] for out, _ in told}
    rows = read_rows(run_id, ledger.TUNE_TRIALS, uri)
    assert rows is not None
    assert [row["outcome"] for row in rows] == ["keeps all"] * 6
    done = [set(re.findall(r"^cedkv: trial (\d) at config:", err, re.MULTILINE)) for _, err in told]
    assert done[0] | done[1] == {str(number) for number in range(6)}
    assert not done[0] & done[1]
    assert all(done)
    assert not [text for pair in told for text in pair if PASSWORD in text]
