"""Reading runs back as `RunRecord`: the same from a database file and from a server, whatever state they are in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.artifacts import Artifacts
from cedkv.tracking.backend import MlflowClient, MlflowException, Run, ViewType, store_errors
from cedkv.tracking.names import check_experiment, check_key, check_run_id
from cedkv.tracking.record import OnRow, RunRecord, StressRow
from cedkv.tracking.store import open_client, shown
from cedkv.tracking.tables import parse_config, parse_list, parse_mapping, parse_rows

RUNS_PER_PAGE: Final = 500

_FIELDS: Final[dict[str, str]] = {
    ledger.CONFIG_RESOLVED: "config",
    ledger.DATA_SPEC: "data_spec",
    ledger.TABLE_STRESS: "stress_table",
    ledger.TABLE_ON: "on_table",
    ledger.CERTIFICATE: "certificate",
}
_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    ledger.CONFIG_RESOLVED: parse_config,
    ledger.DATA_SPEC: parse_mapping,
    ledger.TABLE_STRESS: lambda text: parse_rows(text, StressRow),
    ledger.TABLE_ON: lambda text: parse_rows(text, OnRow),
    ledger.CERTIFICATE: parse_mapping,
}
_TRACES: Final = (
    ledger.LOSS_CURVE,
    ledger.LAMBDA_TRACE,
    ledger.TOPK_TRACE,
    ledger.ATOM_TYPE_MASS,
    ledger.WARN_TRACE,
)
_log = logging.getLogger(__name__)


class MetricPoint(NamedTuple):
    """One logged value of a metric."""

    step: int
    value: float
    timestamp_ms: int


def read_run(run_id: str, uri: str) -> RunRecord:
    """The run ``run_id`` with its artifacts, deleted ones too.

    An artifact that was never logged is ``None``; one that is there but cannot be read or parsed is ``None`` and a
    line in ``problems``. Raises ``UserError`` for an id that is malformed or not in the store, or a missing store.
    """
    check_run_id(run_id)
    client = open_client(uri)
    with store_errors(f"reading run {run_id} from {shown(uri)}"):
        run = _get_run(client, run_id, uri)
    found, problems = _parse_all(Artifacts(client, run, uri), _PARSERS)
    return _record(run, {_FIELDS[path]: content for path, content in found.items()}, problems)


def list_runs(
    experiment: str, uri: str, *, flagged: str | None = None, view_all: bool = True
) -> list[RunRecord]:
    """Every run of ``experiment`` by start time, without artifacts (``read_run`` fetches those of one run).

    Args:
        experiment: its name. ``UserError`` when the store has none of that name.
        uri: the store.
        flagged: only runs whose tag of this name is ``"true"``.
        view_all: deleted runs too.
    """
    filters = "" if flagged is None else f"tags.`{check_key(flagged, 'tag')}` = '{ledger.TRUE}'"
    view = ViewType.ALL if view_all else ViewType.ACTIVE_ONLY
    client = open_client(uri)
    with store_errors(f"listing the runs of {experiment!r} in {shown(uri)}"):
        runs = list(_search(client, _experiment_id(client, experiment, uri), filters, view))
    return [_record(run) for run in sorted(runs, key=lambda run: (run.info.start_time or 0, run.info.run_id))]


def latest_run(experiment: str, uri: str, phase: str | int | None = None) -> RunRecord:
    """The run of ``experiment`` that started last, with its artifacts, whatever its status; deleted runs excepted.

    ``phase`` (``"2"`` or ``"3"``) restricts it to runs of that phase. ``UserError`` when there is none.
    """
    filters = "" if phase is None else f"tags.`{ledger.TAG_PHASE}` = '{int(phase)}'"
    client = open_client(uri)
    with store_errors(f"looking for the latest run of {experiment!r} in {shown(uri)}"):
        found = next(
            _search(client, _experiment_id(client, experiment, uri), filters, ViewType.ACTIVE_ONLY), None
        )
    if found is None:
        kind = "run" if phase is None else f"run of phase {phase}"
        raise UserError(
            f"experiment {experiment!r} in {shown(uri)} has no {kind}; train one, or name a run by its id"
        )
    return read_run(found.info.run_id, uri)


def metric_history(run_id: str, names: Iterable[str], uri: str) -> dict[str, tuple[MetricPoint, ...]]:
    """Every logged value of the metrics ``names``, by step; an empty tuple for one that was never logged."""
    check_run_id(run_id)
    checked = [check_key(name) for name in names]
    client = open_client(uri)
    with store_errors(f"reading metrics of run {run_id} from {shown(uri)}"):
        _get_run(client, run_id, uri)
        return {name: _history(client, run_id, name) for name in checked}


def read_traces(run_id: str, uri: str) -> dict[str, list[Any]]:
    """The traces that run ``run_id`` logged, by artifact name: what a report draws and no gate reads.

    A trace that is absent is left out, and so is one that cannot be parsed, with a logged warning: a report without
    one chart is better than none. Raises ``UserError`` as ``read_run`` does.
    """
    check_run_id(run_id)
    client = open_client(uri)
    with store_errors(f"reading the traces of run {run_id} from {shown(uri)}"):
        run = _get_run(client, run_id, uri)
    found, problems = _parse_all(Artifacts(client, run, uri), dict.fromkeys(_TRACES, parse_list))
    for problem in problems:
        _log.warning("run %s: %s", run_id, problem)
    return found


def fetch(run_id: str, paths: Iterable[str], uri: str, folder: Path) -> list[Path]:
    """Copy artifacts of a run into ``folder``; where they are, in the order of ``paths``.

    Raises ``UserError`` for one that the run does not hold, and as ``read_run`` does.
    """
    check_run_id(run_id)
    client = open_client(uri)
    with store_errors(f"reading artifacts of run {run_id} from {shown(uri)}"):
        files = Artifacts(client, _get_run(client, run_id, uri), uri)
        found = {path: files.copy(path, folder) for path in paths}
    missing = [path for path, copied in found.items() if copied is None]
    if missing:
        raise UserError(f"run {run_id} holds no artifact {missing[0]!r}; name a run that finished")
    return [copied for copied in found.values() if copied is not None]


def _history(client: MlflowClient, run_id: str, name: str) -> tuple[MetricPoint, ...]:
    points = (MetricPoint(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, name))
    return tuple(sorted(points, key=lambda point: (point.step, point.timestamp_ms)))


def _get_run(client: MlflowClient, run_id: str, uri: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"run {run_id} is not in {shown(uri)}; give the id of a logged run, or point tracking.uri or "
            "MLFLOW_TRACKING_URI at the store that holds it"
        ) from None


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    experiment = client.get_experiment_by_name(check_experiment(name))
    if experiment is None:
        known = ", ".join(repr(found.name) for found in client.search_experiments(max_results=10))
        raise UserError(f"experiment {name!r} is not in {shown(uri)}, which has {known}; name one of these")
    return experiment.experiment_id


def _search(client: MlflowClient, experiment_id: str, filters: str, view: int) -> Iterator[Run]:
    """Runs, the latest first, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], filters, view, RUNS_PER_PAGE, ["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _record(run: Run, artifacts: dict[str, Any] | None = None, problems: Iterable[str] = ()) -> RunRecord:
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
        problems=tuple(problems),
        **(artifacts or {}),
    )


def _parse_all(
    files: Artifacts, wanted: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The artifacts among ``wanted`` that are there and parse, by path; a line for each that is there and does not."""
    found: dict[str, Any] = {}
    problems = []
    for path, parse in wanted.items():
        try:
            text = files.text(path)
            if text is not None:
                found[path] = parse(text)
        except ValueError as error:
            problems.append(f"{path}: {' '.join(str(error).split())[:300]}")
    return found, problems
