"""Add to a run that has ended: text artifacts, and what a verdict writes back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cedkv.tracking.artifacts import Files
from cedkv.tracking.names import MAX_TAG, check_key, clip
from cedkv.tracking.reader import find_run
from cedkv.tracking.store import open_client, prepare_store, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient


def attach(run_id: str, uri: str, files: Mapping[str, str]) -> None:
    """Write each text of `files` (path in the run: content) to the run's artifacts, replacing what is there."""
    from cedkv.tracking.backend import store_errors

    with store_errors(f"attaching to run {run_id} in {shown(uri)}"):
        _, artifacts = find_run(run_id, uri)
        for path, text in files.items():
            artifacts.write(path, text)


def write_back(
    run_id: str,
    uri: str,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Mapping[str, str],
) -> bool:
    """Bring a run that has ended to hold exactly `tags`, `metrics` and `files`, beside all else it holds.

    Only what differs is written, and new metrics stand at the run's own end, so that writing the same again changes
    nothing and two who write the same at once do no harm.

    Returns:
        whether anything was written.

    Raises:
        UserError: the run is not there or was deleted, or the store refuses.
    """
    run, artifacts = find_run(run_id, uri)
    wanted = {check_key(name, "tag"): clip(value, MAX_TAG) for name, value in tags.items()}
    changed = {name: value for name, value in wanted.items() if run.tags.get(name) != value}
    moved = {check_key(name): value for name, value in metrics.items() if run.metrics.get(name) != value}
    new = {path: text for path, text in files.items() if not _holds(artifacts, path, text)}
    if not (changed or moved or new):
        return False
    from cedkv.tracking.backend import Metric, store_errors  # imports mlflow, which takes seconds

    now, end = time.time_ns() // 1_000_000, run.end_time_ms or 0
    client = _client(uri)
    with store_errors(f"writing the verdict on run {run_id} to {shown(uri)}"):
        for name, value in changed.items():
            client.set_tag(run_id, name, value)
        if moved:
            # MLflow shows the latest of a metric's values: one that corrects another has to be later.
            points = [Metric(name, x, now if name in run.metrics else end, 0) for name, x in moved.items()]
            client.log_batch(run_id, metrics=points)
    attach(run_id, uri, new)
    return True


def _client(uri: str) -> MlflowClient:
    """A client for writing: a store that was copied is its own from here on and writes nothing into the original."""
    client = open_client(uri)  # refuses a store that is not there
    prepare_store(uri)
    return client


def _holds(artifacts: Files, path: str, text: str) -> bool:
    try:
        return artifacts.text(path) == text
    except ValueError:  # unreadable is as good as other
        return False
