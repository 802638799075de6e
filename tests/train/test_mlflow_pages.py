"""What a real run leaves for MLflow's own pages, and what happens where the store wants none of it."""

from __future__ import annotations

import pytest

from cedkv import ledger
from cedkv.tracking.reader import list_runs
from cedkv.tracking.store import open_client
from cedkv.train.loop import ConstraintViolatedError
from cedkv.train.main import run_training
from cedkv.train.mlflow_pages import run_name

FEW = "phase3.train.steps=2"


def test_a_name_says_phase_size_and_what_is_repeated(small_config):
    config = small_config("model.name_or_path=embedded")
    assert run_name(config, 2) == "phase 2 · 3 x 3 · seed 3407"
    assert run_name(small_config("phase3.mix.slot_gate=affine"), 3).startswith(
        "phase 3 · 3 x 3 gated · small-model"
    )
    assert run_name(config, 3, "2b6934f0" + "0" * 24) == "phase 3 · 3 x 3 · repeats 2b6934f0"


def test_a_run_leaves_its_data_as_inputs_and_its_memory_as_a_model(small_config, store_uri):
    run_id = run_training(
        small_config(f"tracking.uri={store_uri}", FEW, "tracking.system_metrics=true"), phase=3
    )
    client = open_client(store_uri)
    run = client.get_run(run_id)
    digests = {found.dataset.name: found.dataset.digest for found in run.inputs.dataset_inputs}
    tags = {name: run.data.tags[ledger.HASH_TAG_PREFIX + name] for name in digests}
    assert digests.keys() == {"documents", "on_train", "on_eval", "off_train", "stress", "sealed"}
    assert digests == {name: tag[:36] for name, tag in tags.items()}
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert str(model.status) == "READY"
    shown = {metric.key: metric.value for metric in model.metrics}
    for name in (ledger.ON_GAIN, ledger.P99_STRESS, ledger.REL_KL_TO_TEACHER):
        assert shown[name] == run.data.metrics[name]
    assert ledger.LOSS not in shown, "the loss of the last step may be that of another memory"
    assert run.data.metrics["system/process_memory_megabytes"] > 10


def test_a_run_whose_warning_aborts_it_leaves_no_model(small_config, store_uri):
    warn = "phase3.train.constraint_warn={patience_eval_ticks: 1, action: abort}"
    config = small_config(f"tracking.uri={store_uri}", "phase3.thresholds.off_delta_p99_max=1e-6", warn)
    with pytest.raises(ConstraintViolatedError):
        run_training(config, phase=3)
    (run,) = list_runs("cedkv", store_uri)
    assert run.status == "FAILED"
    assert open_client(store_uri).search_logged_models([run.experiment_id]) == []


def test_a_store_that_refuses_data_and_models_loses_no_metric(small_config, store_uri, monkeypatch, capsys):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def refuses(*_: object, **__: object) -> None:
        raise MlflowException("not on this server")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_inputs", refuses)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full)
    run_id = run_training(small_config(f"tracking.uri={store_uri}", FEW), phase=3)
    (run,) = list_runs("cedkv", store_uri)
    assert (run.run_id, run.status) == (run_id, "FINISHED")
    assert {ledger.ON_GAIN, ledger.P99_STRESS, ledger.GATE_B_PASSED} <= run.metrics.keys()
    told = capsys.readouterr().err
    assert "the run's data is not among its inputs" in told
    assert "the memory is not among the models" in told
