"""What MLflow's own pages show beside metrics: the data of a run as its inputs, its memory as a model with metrics.

Both are for people. No verdict reads them, and a store that refuses one loses nothing else.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cedkv.core.errors import UserError
from cedkv.tracking.names import clip
from cedkv.tracking.reader import fetch, find_run, metric_history
from cedkv.tracking.store import open_client, prepare_store, shown

MAX_DIGEST: Final = 36
MODEL_TYPE: Final = "cedkv memory"
_CONTEXT: Final = "mlflow.data.context"


@dataclass(frozen=True, slots=True)
class DataPart:
    """One part of a run's data: its name, the SHA-256 of its content, what it is used for, where it is from, its size."""

    name: str
    sha256: str
    context: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any]


def log_data(run_id: str, uri: str, parts: Sequence[DataPart]) -> None:
    """Note the data of a run as its inputs. Raises ``UserError`` where the store refuses."""
    from cedkv.tracking.backend import Dataset, DatasetInput, InputTag, store_errors

    inputs = [
        DatasetInput(
            Dataset(
                name=part.name,
                digest=part.sha256[:MAX_DIGEST],
                source_type="cedkv",
                source=json.dumps(part.source),
                profile=json.dumps(part.profile),
            ),
            [InputTag(_CONTEXT, part.context)],
        )
        for part in parts
    ]
    with store_errors(f"noting the data of run {run_id} in {shown(uri)}"):
        open_client(uri).log_inputs(run_id, datasets=inputs)


def log_memory(
    run_id: str, uri: str, paths: Sequence[str], params: Mapping[str, str], metrics: Sequence[str]
) -> str:
    """Enter the memory of a run that has finished as a model: its files, its tags, its metrics.

    Args:
        run_id: the run; what it logged under `paths` is the model.
        uri: the store.
        paths: artifacts of the run.
        params: what tells this memory from others.
        metrics: which of the run's metrics are the memory's; of each the last value, where it is finite.

    Returns:
        The id of the model.

    Raises:
        UserError: the run did not finish or holds no such artifact, or the store refuses; no model is ready then.
    """
    from cedkv.tracking.backend import LoggedModelOutput, Metric, MlflowException, store_errors

    run, _ = find_run(run_id, uri)
    if run.status != "FINISHED":
        raise UserError(
            f"run {run_id} is {run.status}: only the memory of a finished run is entered as a model"
        )
    client = open_client(uri)
    prepare_store(uri)
    history = metric_history(run_id, metrics, uri)
    last = {
        name: points[-1] for name, points in history.items() if points and math.isfinite(points[-1].value)
    }
    kept = {name: value for name, value in run.tags.items() if name.startswith("cedkv.")}
    with (
        tempfile.TemporaryDirectory() as folder,
        store_errors(f"entering the memory of run {run_id} in {shown(uri)}"),
    ):
        fetch(run_id, paths, uri, Path(folder))
        model = client.create_logged_model(
            run.experiment_id,
            name=f"memory-{run_id[:8]}",
            source_run_id=run_id,
            tags={name: clip(value, 5000) for name, value in kept.items()},
            params=dict(params),
            model_type=MODEL_TYPE,
        )
        try:
            client.log_model_artifacts(model.model_id, folder)
            # MLflow logs what a model gets to its run as well: the very points that are there add none.
            points = [
                Metric(
                    name, point.value, point.timestamp_ms, point.step, model_id=model.model_id, run_id=run_id
                )
                for name, point in last.items()
            ]
            client.log_batch(run_id, metrics=points)
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        except BaseException:
            # Where the store is away the model stays pending, which is not ready either.
            with suppress(MlflowException):
                client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
    found: str = model.model_id
    return found
