"""Reading runs back as `RunRecord`: the same from a database file and from a server, whatever state they are in."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.artifacts import Files
from cedkv.tracking.fast_read import open_database
from cedkv.tracking.names import check_artifact_path, check_experiment, check_key, check_run_id
from cedkv.tracking.record import MetricPoint, OnRow, RunRecord, StressRow, Tag
from cedkv.tracking.store import check_uri, database_path, is_sqlite, shown
from cedkv.tracking.tables import parse_config, parse_list, parse_mapping, parse_objects, parse_rows

if TYPE_CHECKING:
    from cedkv.tracking.api_read import ApiStore

Answer = TypeVar("Answer")

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


def read_run(run_id: str, uri: str) -> RunRecord:
    """The run ``run_id`` with its artifacts, deleted ones too.

    An artifact that was never logged is ``None``; one that is there but cannot be read or parsed is ``None`` and a
    line in ``problems``. Raises ``UserError`` for an id that is malformed or not in the store, or a missing store.
    """
    check_run_id(run_id)
    with _Store(uri) as store:
        return store.read(run_id)


def read_runs(runs: str | Collection[str], uri: str, *, view_all: bool = True) -> Iterator[RunRecord]:
    """Runs with their artifacts by start time, ties by id: read one by one as they are asked for, each as ``read_run``.

    Args:
        runs: the name of an experiment, or a collection of run ids.
        uri: the store.
        view_all: deleted runs of the experiment too. Runs named by their ids are read in any case.

    What can be refused at once is: ``UserError`` from this call for a missing store or experiment, or an id that is
    malformed or not in the store. The iterator raises it for a run that was erased since.
    """
    if isinstance(runs, str):
        experiment = check_experiment(runs)
        with _Store(uri) as store:
            ids = store.ask(lambda source: source.ids(experiment, None, view_all=view_all))
    else:
        wanted = {check_run_id(run_id) for run_id in runs}
        with _Store(uri) as store:
            started = sorted((store.find(run_id)[0].start_time_ms, run_id) for run_id in wanted)
        ids = [run_id for _, run_id in started]
    return _read_each(ids, uri)


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
    check_experiment(experiment)
    tag = None if flagged is None else (check_key(flagged, "tag"), ledger.TRUE)
    with _Store(uri) as store:
        return store.ask(lambda source: source.records(experiment, tag, view_all=view_all))


def latest_run(experiment: str, uri: str, phase: str | int | None = None) -> RunRecord:
    """The run of ``experiment`` that started last, with its artifacts, whatever its status; deleted runs excepted.

    ``phase`` (``"2"`` or ``"3"``) restricts it to runs of that phase. ``UserError`` when there is none.
    """
    check_experiment(experiment)
    tag = None if phase is None else (ledger.TAG_PHASE, str(int(phase)))
    with _Store(uri) as store:
        found = store.ask(lambda source: source.latest(experiment, tag))
        if not found:
            kind = "run" if phase is None else f"run of phase {phase}"
            raise UserError(
                f"experiment {experiment!r} in {shown(uri)} has no {kind}; train one, or name a run by its id"
            )
        return store.read(found[0])


def metric_history(run_id: str, names: Iterable[str], uri: str) -> dict[str, tuple[MetricPoint, ...]]:
    """Every logged value of the metrics ``names``, by step; an empty tuple for one that was never logged."""
    check_run_id(run_id)
    checked = [check_key(name) for name in names]
    with _Store(uri) as store:
        return store.ask(lambda source: source.history(run_id, checked))


def read_traces(run_id: str, uri: str) -> dict[str, list[Any]]:
    """The traces that run ``run_id`` logged, by artifact name: what a report draws and no gate reads.

    A trace that is absent is left out, and so is one that cannot be parsed, with a logged warning: a report without
    one chart is better than none. Raises ``UserError`` as ``read_run`` does.
    """
    check_run_id(run_id)
    with _Store(uri) as store:
        _, files = store.find(run_id)
        found, problems = _parse_all(files, dict.fromkeys(_TRACES, parse_list))
    for problem in problems:
        _log.warning("run %s: %s", run_id, problem)
    return found


def read_rows(run_id: str, path: str, uri: str) -> list[dict[str, Any]] | None:
    """The rows of one artifact, JSON Lines or a JSON list of objects; ``None`` where the run has no such artifact.

    Raises ``UserError`` for one that is there and holds something else, and as ``read_run`` does.
    """
    _, files = find_run(run_id, uri)
    try:
        text = files.text(check_artifact_path(path))
        return None if text is None else parse_objects(text)
    except ValueError as error:
        raise UserError(f"artifact {path!r} of run {run_id}: {' '.join(str(error).split())[:300]}") from None


def fetch(run_id: str, paths: Iterable[str], uri: str, folder: Path) -> list[Path]:
    """Copy artifacts of a run into ``folder``; where they are, in the order of ``paths``.

    Raises ``UserError`` for one that the run does not hold, and as ``read_run`` does.
    """
    _, files = find_run(run_id, uri)
    found = {path: files.copy(path, folder) for path in paths}
    missing = [path for path, copied in found.items() if copied is None]
    if missing:
        raise UserError(f"run {run_id} holds no artifact {missing[0]!r}; name a run that finished")
    return [copied for copied in found.values() if copied is not None]


def whole_run_id(beginning: str, experiment: str, uri: str) -> str:
    """The id of the run of ``experiment`` that begins like this, as reports shorten ids; deleted runs included.

    Raises ``UserError`` where no run of it does, or several do.
    """
    check_experiment(experiment)
    with _Store(uri) as store:
        ids = store.ask(lambda source: source.ids(experiment, None, view_all=True))
    found = [run_id for run_id in ids if run_id.startswith(beginning)]
    if len(found) != 1:
        told = f"{len(found)} runs" if found else "no run"
        raise UserError(
            f"{told} of experiment {experiment!r} in {shown(uri)} begin with {beginning!r}; give the whole id, or name another "
            "experiment with --experiment"
        )
    return found[0]


def read_experiment(experiment_id: str, uri: str) -> tuple[str, dict[str, str]]:
    """Name and tags of an experiment; ``UserError`` where the store has none of that id."""
    with _Store(uri) as store:
        return store.ask(lambda source: source.experiment(experiment_id))


def find_run(run_id: str, uri: str) -> tuple[RunRecord, Files]:
    """A run without its artifacts, and the way to these. Raises ``UserError`` as ``read_run`` does."""
    check_run_id(run_id)
    with _Store(uri) as store:
        return store.find(run_id)


class _Source(Protocol):
    """What a store can be asked. ``None`` where this way of reading does not know."""

    def ids(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[str] | None: ...
    def records(self, experiment: str, tag: Tag | None, *, view_all: bool) -> list[RunRecord] | None: ...
    def latest(self, experiment: str, tag: Tag | None) -> list[str] | None: ...
    def run(self, run_id: str) -> tuple[RunRecord, Files] | None: ...
    def history(self, run_id: str, names: Iterable[str]) -> dict[str, tuple[MetricPoint, ...]] | None: ...
    def experiment(self, experiment_id: str) -> tuple[str, dict[str, str]] | None: ...


class _Store:
    """The store at ``uri``: its database file where that is known, and MLflow's client for everything else."""

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        self._uri = uri
        self._database = open_database(database_path(uri)) if is_sqlite(uri) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.close()

    @cached_property
    def _api(self) -> ApiStore:
        from cedkv.tracking.api_read import ApiStore  # imports mlflow, which takes seconds

        return ApiStore(self._uri)

    def ask(self, question: Callable[[_Source], Answer | None]) -> Answer:
        """The answer to ``question``; ``UserError`` when there is none."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                answer = question(self._database)
                if answer is not None:
                    return answer
        answer = question(self._api)
        assert answer is not None, "MLflow's client answers or refuses"
        return answer

    def find(self, run_id: str) -> tuple[RunRecord, Files]:
        """The run without its artifacts, and the way to these."""
        return self.ask(lambda source: source.run(run_id))

    def read(self, run_id: str) -> RunRecord:
        """The run with its artifacts."""
        record, files = self.find(run_id)
        found, problems = _parse_all(files, _PARSERS)
        artifacts = {_FIELDS[path]: content for path, content in found.items()}
        return dataclasses.replace(record, problems=tuple(problems), **artifacts)


def _read_each(ids: Iterable[str], uri: str) -> Iterator[RunRecord]:
    with _Store(uri) as store:
        for run_id in ids:
            yield store.read(run_id)


def _parse_all(files: Files, wanted: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], list[str]]:
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
