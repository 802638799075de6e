"""A store read through MLflow's client: servers, database servers, and of a local file what `fast_read` leaves.

Here is also where everything is refused that a store does not hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from cedkv.core.errors import UserError
from cedkv.tracking.artifacts import Files, check_size, local_files
from cedkv.tracking.backend import MlflowClient, MlflowException, Run, ViewType, store_errors
from cedkv.tracking.names import check_artifact_path
from cedkv.tracking.record import MetricPoint, RunRecord, Tag
from cedkv.tracking.store import open_client, shown

RUNS_PER_PAGE: Final = 500


class ApiStore:
    """The store at ``uri``. Every method raises ``UserError`` for what the store does not hold or refuses."""

    def __init__(self, uri: str) -> None:
        self._uri, self._client = uri, open_client(uri)

    def ids(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[str]:
        """The runs of an experiment by start time, ties by id: all, or those with ``tag``. Deleted ones on request."""
        with store_errors(f"listing the runs of {experiment!r} in {shown(self._uri)}"):
            listed = [_start(run) for run in self._listed(experiment, tag, view_all=view_all)]
        return [run_id for _, run_id in sorted(listed)]

    def records(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[RunRecord]:
        """As ``ids``, each run without its artifacts."""
        with store_errors(f"listing the runs of {experiment!r} in {shown(self._uri)}"):
            runs = list(self._listed(experiment, tag, view_all=view_all))
        return [_record(run) for run in sorted(runs, key=_start)]

    def latest(self, experiment: str, tag: Tag | None) -> list[str]:
        """The run that started last, if any, deleted ones excepted; of several the first by id."""
        with store_errors(f"looking for the latest run of {experiment!r} in {shown(self._uri)}"):
            found = self._client.search_runs(
                [self._experiment_id(experiment)],
                _filter(tag),
                ViewType.ACTIVE_ONLY,
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
        return [run.info.run_id for run in found]

    def run(self, run_id: str) -> tuple[RunRecord, Files]:
        """A run without its artifacts, and the way to these."""
        with store_errors(f"reading run {run_id} from {shown(self._uri)}"):
            run = self._get_run(run_id)
        return _record(run), files_of(self._client, run, self._uri)

    def history(self, run_id: str, names: Iterable[str]) -> dict[str, tuple[MetricPoint, ...]]:
        """Every logged value of the metrics ``names`` of a run, by step."""
        with store_errors(f"reading metrics of run {run_id} from {shown(self._uri)}"):
            self._get_run(run_id)
            return {name: self._points(run_id, name) for name in names}

    def experiment(self, experiment_id: str) -> tuple[str, dict[str, str]]:
        """Name and tags of an experiment."""
        with store_errors(f"reading experiment {experiment_id} from {shown(self._uri)}"):
            found = self._client.get_experiment(experiment_id)
        return found.name, dict(found.tags)

    def _points(self, run_id: str, name: str) -> tuple[MetricPoint, ...]:
        logged = self._client.get_metric_history(run_id, name)
        points = (MetricPoint(metric.step, metric.value, metric.timestamp) for metric in logged)
        return tuple(sorted(points, key=lambda point: (point.step, point.timestamp_ms)))

    def _get_run(self, run_id: str) -> Run:
        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"run {run_id} is not in {shown(self._uri)}; give the id of a logged run, or point tracking.uri or "
                "MLFLOW_TRACKING_URI at the store that holds it"
            ) from None

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            known = ", ".join(repr(found.name) for found in self._client.search_experiments(max_results=10))
            raise UserError(
                f"experiment {name!r} is not in {shown(self._uri)}, which has {known}; name one of these"
            )
        return experiment.experiment_id

    def _listed(self, experiment: str, tag: Tag | None, *, view_all: bool) -> Iterator[Run]:
        """Runs page by page, in an order that neither a new nor a deleted run shifts while they are turned."""
        experiment_id, token = self._experiment_id(experiment), None
        while True:
            page = self._client.search_runs(
                [experiment_id],
                _filter(tag),
                ViewType.ALL,
                RUNS_PER_PAGE,
                ["attributes.start_time ASC"],
                page_token=token,
            )
            yield from (run for run in page if view_all or run.info.lifecycle_stage == "active")
            token = page.token
            if not token:
                return


def files_of(client: MlflowClient, run: Run, uri: str) -> Files:
    """The artifacts of a run, on this machine's disk or through its server."""
    return local_files(uri, run.info.artifact_uri) or _ServedFiles(client, run.info.run_id)


class _ServedFiles:
    """The artifacts of a run that only its server reaches."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._sizes = cache(self._list)

    def text(self, path: str) -> str | None:
        """As `Files.text`."""
        try:
            content = self._download(path)
        except (OSError, MlflowException) as error:
            raise ValueError(f"cannot be read: {error}") from error
        return None if content is None else content.decode()

    def copy(self, path: str, folder: Path) -> Path | None:
        """As `Files.copy`."""
        held = path in self._sizes(path.rpartition("/")[0])
        return Path(self._client.download_artifacts(self._run_id, path, str(folder))) if held else None

    def write(self, path: str, text: str) -> None:
        """As `Files.write`."""
        self._client.log_text(self._run_id, text, check_artifact_path(path))
        self._sizes.cache_clear()

    def _download(self, path: str) -> bytes | None:
        sizes = self._sizes(path.rpartition("/")[0])
        if path not in sizes:
            return None
        check_size(sizes[path])
        with tempfile.TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(self._run_id, path, folder)).read_bytes()

    def _list(self, folder: str) -> dict[str, int]:
        return {
            item.path: item.file_size or 0
            for item in self._client.list_artifacts(self._run_id, folder or None)
        }


def _filter(tag: Tag | None) -> str:
    return "" if tag is None else f"tags.`{tag[0]}` = '{tag[1]}'"


def _start(run: Run) -> tuple[int, str]:
    return run.info.start_time or 0, run.info.run_id


def _record(run: Run) -> RunRecord:
    info = run.info
    return RunRecord(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        name=info.run_name or "",
        status=info.status,
        lifecycle=info.lifecycle_stage,
        start_time_ms=info.start_time or 0,
        end_time_ms=info.end_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )
