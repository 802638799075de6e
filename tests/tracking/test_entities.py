"""Data as inputs and memories as models, in a database file and on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from cedkv.core.errors import UserError
from cedkv.tracking.entities import DataPart, log_data, log_memory
from cedkv.tracking.reader import metric_history
from cedkv.tracking.store import open_client
from cedkv.tracking.writer import RunWriter


@pytest.fixture(params=["file", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("store_uri" if request.param == "file" else "server_uri"))


def finished(uri: str, tmp_path: Path) -> RunWriter:
    memory = tmp_path / "memory.safetensors"
    memory.write_bytes(b"weights")
    with RunWriter(uri, "entities", tags={"cedkv.phase": "3"}) as run:
        run.log_file("memory/memory.safetensors", memory)
        for step in (0, 5):
            run.log_metrics({"on_gain": 0.5 + step, "nan": float("nan"), "phase3_loss": 2.0}, step)
    return run


def test_the_data_of_a_run_are_its_inputs(uri, tmp_path):
    run = finished(uri, tmp_path)
    part = DataPart("stress", "ab" * 32, "evaluation", {"seed": 1}, {"rows": 3})
    log_data(run.run_id, uri, [part, DataPart("on_train", "cd" * 32, "training", {}, {"rows": 1})])
    inputs = {
        found.dataset.name: found for found in open_client(uri).get_run(run.run_id).inputs.dataset_inputs
    }
    assert inputs.keys() == {"stress", "on_train"}
    assert inputs["stress"].dataset.digest == ("ab" * 32)[:36]
    assert [tag.value for tag in inputs["stress"].tags] == ["evaluation"]
    assert inputs["stress"].dataset.profile == '{"rows": 3}'


def test_the_memory_of_a_finished_run_is_a_model_with_its_files_and_last_metrics(uri, tmp_path):
    run = finished(uri, tmp_path)
    before = metric_history(run.run_id, ["on_gain"], uri)
    model_id = log_memory(
        run.run_id, uri, ["memory/memory.safetensors"], {"slots": "8"}, ["on_gain", "nan", "never logged"]
    )
    client = open_client(uri)
    model = client.get_logged_model(model_id)
    assert (str(model.status), model.source_run_id, model.params) == ("READY", run.run_id, {"slots": "8"})
    assert {metric.key: metric.value for metric in model.metrics} == {"on_gain": 5.5}
    assert [output.model_id for output in client.get_run(run.run_id).outputs.model_outputs] == [model_id]
    assert metric_history(run.run_id, ["on_gain"], uri) == before, "the run's own history is as it was"
    held = client._tracking_client
    assert [item.path for item in held.list_logged_model_artifacts(model_id)] == ["memory.safetensors"]


def test_a_run_that_failed_has_no_model(store_uri):
    with pytest.raises(RuntimeError, match="boom"), RunWriter(store_uri, "entities") as run:
        raise RuntimeError("boom")
    with pytest.raises(UserError, match="only the memory of a finished run"):
        log_memory(run.run_id, store_uri, ["memory/memory.safetensors"], {}, ["on_gain"])
    assert open_client(store_uri).search_logged_models([run.experiment_id]) == []


def test_without_the_files_no_model_is_left(store_uri):
    with RunWriter(store_uri, "entities") as run:
        pass
    with pytest.raises(UserError, match="holds no artifact"):
        log_memory(run.run_id, store_uri, ["memory/memory.safetensors"], {}, ["on_gain"])
    assert open_client(store_uri).search_logged_models([run.experiment_id]) == []


def test_a_model_whose_files_do_not_arrive_is_not_ready(store_uri, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = finished(store_uri, tmp_path)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full)
    with pytest.raises(OSError, match="No space left"):
        log_memory(run.run_id, store_uri, ["memory/memory.safetensors"], {}, ["on_gain"])
    (model,) = open_client(store_uri).search_logged_models([run.experiment_id])
    assert str(model.status) == "FAILED"


def test_a_moved_store_finds_its_models(store_uri, tmp_path):
    run = finished(store_uri, tmp_path)
    model_id = log_memory(run.run_id, store_uri, ["memory/memory.safetensors"], {}, [])
    moved = tmp_path / "elsewhere"
    (tmp_path / "mlruns").rename(moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    finished(uri, tmp_path)  # the next run corrects the records
    place = Path(open_client(uri).get_logged_model(model_id).artifact_location)
    assert place.is_relative_to(moved)
    assert (place / "memory.safetensors").read_bytes() == b"weights"
