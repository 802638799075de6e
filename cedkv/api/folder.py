"""From a run of the log to a folder that others can use."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cedkv
from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.core.verdict import Status, Verdict
from cedkv.memory.export import DESCRIBED, TENSORS, StoredMemory, read_memory
from cedkv.release.verdict import verdict_on
from cedkv.report.tables import jsonable
from cedkv.report.written_back import tags as verdict_tags
from cedkv.tracking.reader import fetch, read_run
from cedkv.tracking.record import RunRecord
from cedkv.train.logged import check_memory, memory_of
from cedkv.train.publish import surroundings

METRICS = (
    ledger.ON_GAIN,
    ledger.ON_GAIN_RECOVERED,
    ledger.P99_STRESS,
    ledger.P99_UPPER,
    ledger.MEAN_STRESS,
    ledger.MAX_STRESS,
)
"""What an exported memory tells of its run."""


class NotPassedError(UserError):
    """The gates did not pass a run. ``status`` is what they say."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


def export(run_id: str, uri: str, folder: Path, *, force: bool = False) -> Verdict:
    """Write the memory of a run to ``folder``, with where it is from and what the gates say of it; the verdict.

    All or nothing: the folder appears when it is complete.

    Args:
        run_id: a finished run.
        uri: the store.
        folder: must not be there, or be empty.
        force: write it whatever the gates say.

    Raises:
        NotPassedError: the gates do not pass the run.
        UserError: a run without a memory or whose log was changed, or a folder that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is there already and not empty: name another folder with --out")
    record = read_run(run_id, uri)
    verdict = verdict_on(record, surroundings(record.experiment_id, uri, remember=False))
    status = verdict.gates.status
    if status is not Status.PASS and not force:
        raise NotPassedError(
            f"the gates say {status} of run {record.run_id[:8]} (cedkv gate {record.run_id[:8]} shows why): nothing is exported; "
            "--force exports it with that verdict in it",
            status,
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror}); name another folder with --out"
        ) from error
    try:
        fetched = partial / "fetched"
        fetched.mkdir()
        tensors, described = fetch(record.run_id, (ledger.MEMORY_TENSORS, ledger.MEMORY_META), uri, fetched)
        stored = read_memory(tensors, described)
        check_memory(stored, record)
        tensors.replace(partial / TENSORS)
        meta = {**stored.meta, "provenance": _provenance(record, verdict)}
        (partial / DESCRIBED).write_text(json.dumps(jsonable(meta), indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(fetched)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return verdict


def check_logged(stored: StoredMemory, uri: str) -> Verdict:
    """What the gates say now of the run that a folder's memory is of; `UserError` where that run logged another memory."""
    run_id = stored.provenance.get("run_id")
    if not isinstance(run_id, str):
        raise UserError("the memory does not say which run it is of: only exported ones do")
    record = read_run(run_id, uri)
    logged = memory_of(record, uri)
    if (
        logged.meta.get("tensors_sha256") != stored.meta.get("tensors_sha256")
        or logged.origin != stored.origin
    ):
        raise UserError(f"run {run_id[:8]} logged another memory than this one: export it again")
    return verdict_on(record, surroundings(record.experiment_id, uri, remember=False))


def _provenance(record: RunRecord, verdict: Verdict) -> dict[str, Any]:
    """Which run a memory is of, and what is said of it."""
    certified = verdict.certification
    return {
        "run_id": record.run_id,
        "run_name": record.name,
        "phase": record.tags.get(ledger.TAG_PHASE),
        "git_commit": record.tags.get(ledger.TAG_GIT_COMMIT),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cedkv": cedkv.__version__,
        "verdict": {name.removeprefix("cedkv."): status for name, status in verdict_tags(verdict).items()},
        "metrics": {name: record.metrics.get(name) for name in METRICS},
        "certified_rate": None if certified is None else certified.upper_rate,
        "data": {
            name.removeprefix(ledger.HASH_TAG_PREFIX): value
            for name, value in sorted(record.tags.items())
            if name.startswith(ledger.HASH_TAG_PREFIX)
        },
    }
