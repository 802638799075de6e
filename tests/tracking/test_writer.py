from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.backend import TrackingError
from cedkv.tracking.reader import list_runs, metric_history, read_run
from cedkv.tracking.signals import Terminated
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter


def test_a_run_carries_its_name_tags_and_params(store_uri: str) -> None:
    params = {"phase3": {f"key{i}": i for i in range(230)}, "note": "x" * 7000}
    with RunWriter(store_uri, "exp", name="first", tags={ledger.TAG_PHASE: "3"}, params=params) as run:
        assert read_run(run.run_id, store_uri).status == "RUNNING"
        run.set_tags({ledger.TAG_PHASE: "2", ledger.TAG_MODEL: "m" * 6000})
    record = read_run(run.run_id, store_uri)
    assert (record.name, record.status, record.lifecycle) == ("first", "FINISHED", "active")
    assert record.tags[ledger.TAG_PHASE] == "2"
    assert len(record.tags[ledger.TAG_MODEL]) == 5000
    assert len(record.params) == 231
    assert record.params["phase3.key229"] == "229"
    assert len(record.params["note"]) == 6000
    assert record.end_time_ms is not None
    assert record.end_time_ms >= record.start_time_ms
    assert ledger.TAG_ERROR not in record.tags


def test_two_thousand_steps_come_back_complete_and_in_order(store_uri: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        for step in range(2000):
            run.log_metrics({ledger.LOSS: step / 7, ledger.LAMBDA_OFF: 2.0, "atom_mass/key": -step}, step)
    history = metric_history(
        run.run_id, [ledger.LOSS, ledger.LAMBDA_OFF, "atom_mass/key", "never"], store_uri
    )
    assert [(p.step, p.value) for p in history[ledger.LOSS]] == [(step, step / 7) for step in range(2000)]
    assert [(p.step, p.value) for p in history[ledger.LAMBDA_OFF]] == [(step, 2.0) for step in range(2000)]
    assert [(p.step, p.value) for p in history["atom_mass/key"]] == [(step, -step) for step in range(2000)]
    assert history["never"] == ()
    assert read_run(run.run_id, store_uri).metrics[ledger.LOSS] == 1999 / 7


def test_a_flush_makes_everything_visible_while_the_run_goes_on(store_uri: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        run.log_metrics({"x": 1.0}, 0)
        run.log_text("config/resolved.yaml", "n: 1\n")
        run.flush()
        record = read_run(run.run_id, store_uri)
        assert (record.metrics["x"], record.config) == (1.0, {"n": 1})


def test_values_that_are_not_finite_are_nan_and_counted(store_uri: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        for step, value in enumerate([1.0, math.inf, np.array(-math.inf), 2.0, math.nan]):
            run.log_metrics({"kl": value, "flag": step > 1}, step)
    history = metric_history(run.run_id, ["kl", "nonfinite/kl", "flag"], store_uri)
    assert [(p.step, p.value) for p in history["nonfinite/kl"]] == [(1, 1.0), (2, 2.0), (4, 3.0)]
    assert [p.value for p in history["kl"] if p.value == p.value] == [1.0, 2.0]
    assert [p.value for p in history["flag"]] == [0.0, 0.0, 1.0, 1.0, 1.0]
    record = read_run(run.run_id, store_uri)
    assert math.isnan(record.metrics["kl"])
    assert "nonfinite/flag" not in record.metrics


def test_nulls_in_an_artifact_are_counted(store_uri: str, stress_row: dict[str, Any]) -> None:
    with RunWriter(store_uri, "exp") as run:
        run.log_jsonl(ledger.TABLE_STRESS, [stress_row | {"stress_delta": math.nan}, stress_row])
        run.log_json(ledger.LOSS_CURVE, {"loss": [1.0, math.inf, math.nan]})
    record = read_run(run.run_id, store_uri)
    assert record.metrics[f"nonfinite/{ledger.TABLE_STRESS}"] == 1
    assert record.metrics[f"nonfinite/{ledger.LOSS_CURVE}"] == 2
    assert record.stress_table is not None
    assert math.isnan(record.stress_table[0].stress_delta)


def test_a_logged_file_may_go_when_the_call_returns(store_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "draft.bin"
    source.write_bytes(bytes(range(256)))
    with RunWriter(store_uri, "exp") as run:
        run.log_file(ledger.MEMORY_TENSORS, source)
        source.unlink()
        with pytest.raises(UserError, match="not a file"):
            run.log_file(ledger.MEMORY_META, source)
    (stored,) = (tmp_path / "mlruns" / "artifacts").rglob("memory.safetensors")
    assert stored.read_bytes() == bytes(range(256))
    assert stored.parent.name == "memory"


@pytest.mark.parametrize("name", ["p@99", "a<b", "../x"])
def test_a_bad_name_is_refused_before_it_is_queued_and_the_run_goes_on(store_uri: str, name: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        with pytest.raises(UserError, match="metric name"):
            run.log_metrics({"good": 1.0, name: 1.0}, 0)
        with pytest.raises(UserError, match="tag name"):
            run.set_tags({name: "x"})
        with pytest.raises(UserError, match="artifact path"):
            run.log_text(f"{name}@/x", "")
        run.log_metrics({"good": 2.0}, 1)
    record = read_run(run.run_id, store_uri)
    assert (record.status, dict(record.metrics)) == ("FINISHED", {"good": 2.0})


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("boom \0 \ud800"), "FAILED", "ValueError: boom"),
        (UserError("bad input"), "FAILED", "UserError: bad input"),
        (SystemExit(3), "FAILED", "exit status 3"),
        (SystemExit("no memory"), "FAILED", "exit status no memory"),
        (SystemExit(0), "FINISHED", None),
        (SystemExit(), "FINISHED", None),
        (KeyboardInterrupt(), "KILLED", "interrupted from the keyboard"),
        (Terminated(15), "KILLED", "terminated by SIGTERM"),
        (GeneratorExit(), "FAILED", "GeneratorExit: "),
    ],
)
def test_the_end_of_a_run_says_what_happened(
    store_uri: str, error: BaseException, status: str, reason: str | None
) -> None:
    def loop(run: RunWriter) -> None:
        run.log_metrics({"x": 1.0}, 0)
        raise error

    run, raised = _ends_with(store_uri, type(error), loop)
    assert raised is error
    record = read_run(run.run_id, store_uri)
    assert record.status == status
    assert record.metrics["x"] == 1.0, "what was logged before the end is in the store"
    if reason is None:
        assert ledger.TAG_ERROR not in record.tags
    else:
        assert record.tags[ledger.TAG_ERROR].startswith(reason)


def _ends_with(
    uri: str, kind: type[BaseException], loop: Callable[[RunWriter], object]
) -> tuple[RunWriter, BaseException]:
    """The run around ``loop``, and the exception that leaves it."""
    writer = RunWriter(uri, "exp")
    with pytest.raises(kind) as caught, writer:
        loop(writer)
    return writer, caught.value


def test_a_removed_database_is_noticed_and_not_written_into_the_void(store_uri: str, tmp_path: Path) -> None:
    def loop(run: RunWriter) -> None:
        run.log_metrics({"x": 1.0}, 0)
        run.flush()
        shutil.rmtree(tmp_path / "mlruns")
        run.log_metrics({"x": 2.0}, 1)
        with pytest.raises(TrackingError, match="1 records were not written"):
            run.flush()
        with pytest.raises(TrackingError, match="1 records were not written"):
            run.log_metrics({"x": 3.0}, 2)

    _, raised = _ends_with(store_uri, TrackingError, loop)
    assert "1 records were not written: the database" in str(raised)
    assert "removed or replaced" in str(raised)


def test_a_damaged_database_fails_a_run_that_never_logs_again(store_uri: str, tmp_path: Path) -> None:
    def loop(run: RunWriter) -> None:
        for file in (tmp_path / "mlruns").glob("mlflow.db*"):
            file.write_bytes(b"\0" * file.stat().st_size)  # the same file, no longer a database
        run.log_metrics({"x": 1.0, "y": 2.0, "z": 3.0}, 0)

    _, raised = _ends_with(store_uri, TrackingError, loop)
    assert "3 records were not written" in str(raised)


def test_a_broken_store_does_not_hide_the_error_of_the_loop(store_uri: str, tmp_path: Path) -> None:
    def loop(run: RunWriter) -> None:
        shutil.rmtree(tmp_path / "mlruns")
        run.log_metrics({"x": 1.0}, 0)
        raise ZeroDivisionError

    _, raised = _ends_with(store_uri, ZeroDivisionError, loop)
    assert "the log is incomplete" in raised.__notes__[0]


def test_records_the_store_refuses_fail_the_run(store_uri: str) -> None:
    def loop(run: RunWriter) -> None:
        open_client(store_uri).delete_run(run.run_id)
        run.log_metrics({"x": 1.0}, 0)

    _, raised = _ends_with(store_uri, TrackingError, loop)
    assert "1 records were not written" in str(raised)
    (record,) = list_runs("exp", store_uri)
    assert (record.lifecycle, record.status) == ("deleted", "RUNNING")


def test_a_deleted_experiment_is_refused_before_a_run_starts(store_uri: str) -> None:
    with RunWriter(store_uri, "exp") as run:
        pass
    open_client(store_uri).delete_experiment(run.experiment_id)
    _, raised = _ends_with(store_uri, UserError, lambda run: pytest.fail("the run started"))
    assert "is deleted" in str(raised)
    assert "mlflow experiments restore" in str(raised)


def test_params_that_cannot_be_stored_are_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parameter name"):
        RunWriter(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "exp", params={"a=b": 1})
    assert list(tmp_path.iterdir()) == []
