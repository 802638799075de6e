"""Phase 2 and Phase 3: real runs, taken from the log or made now; their tables are what they logged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from cedkv import ledger
from cedkv.bench.quality.judge import bytes_of
from cedkv.bench.quality.result import Result
from cedkv.bench.quality.setting import Setting
from cedkv.config import config_hash
from cedkv.core.errors import UserError
from cedkv.data.build import build_corpus
from cedkv.data.records import hashes
from cedkv.memory.export import read_memory
from cedkv.memory.state import States
from cedkv.tracking import lineage
from cedkv.tracking.reader import fetch, list_runs, read_run
from cedkv.tracking.record import RunRecord
from cedkv.train.main import run_training

BUILT = {2: ("capture",), 3: ("capture", "trunk", "train", "hard_pool", "tick", "verify")}
"""Parts of a run's time that build its memory. Phase 2 measures the stress set, but does not need to."""


def from_run(setting: Setting, phase: int) -> Result:
    """The tables of a finished run of this configuration: one that is in a log, else a new one."""
    uri, run_id = (None, "") if setting.options.force else find(setting, phase)
    reused = uri is not None
    if uri is None:
        uri = setting.options.uri
        changes = (*setting.extra, f"tracking.uri={uri}")
        config = Setting(setting.options, setting.seed, setting.say, changes).config(phase)
        setting.say(f"seed {setting.seed}: running Phase {phase} ...")
        run_id = run_training(config, phase=phase)
    record = read_run(run_id, uri)
    if not record.on_table or not record.stress_table:
        raise UserError(
            f"run {run_id} has no per-prompt tables ({'; '.join(record.problems)}): run it anew with --force"
        )
    seconds = sum(record.metrics.get(ledger.SECONDS_PREFIX + part, 0.0) for part in BUILT[phase])
    commit = record.tags.get(ledger.TAG_GIT_COMMIT, "unknown")[:8]
    how = "finished before, taken from the log" if reused else "run for this"
    return Result(
        f"phase{phase}",
        setting.seed,
        record.on_table,
        record.stress_table,
        bytes=bytes_of(memory_of(run_id, uri)),
        seconds=seconds,
        notes=(f"run {run_id[:8]} of code {commit}, {how}",),
        facts={"run": run_id, "commit": commit, "reused": reused},
    )


def find(setting: Setting, phase: int) -> tuple[str | None, str]:
    """Store and id of the newest finished run of this configuration, on this data, from known code."""
    strict = [config_hash(setting.config(phase, strict_hf=on)) for on in (False, True)]
    contents = hashes(build_corpus(setting.config(phase)))
    data = {f"{ledger.HASH_TAG_PREFIX}{name}": found["sha256"] for name, found in contents.items()}
    code = lineage.collect()
    for uri in (setting.options.uri, *setting.options.read_from):
        for run in reversed(list(_runs(setting.config(phase).tracking.experiment, uri))):
            tags = run.tags
            known = tags.get(ledger.TAG_GIT_DIRTY) == "false" or all(
                tags.get(name) == code[name] != lineage.UNKNOWN
                for name in (ledger.TAG_GIT_COMMIT, ledger.TAG_GIT_DIRTY)
            )
            if (
                run.status == "FINISHED"
                and known
                and tags.get(ledger.TAG_PHASE) == str(phase)
                and tags.get(ledger.TAG_CONFIG_HASH) in strict
                and all(tags.get(name) == value for name, value in data.items())
            ):
                return uri, run.run_id
    return None, ""


def _runs(experiment: str, uri: str) -> Iterator[RunRecord]:
    """Runs of an experiment; none where the store or the experiment is not there yet."""
    try:
        yield from list_runs(experiment, uri, view_all=False)
    except UserError:
        return


def memory_of(run_id: str, uri: str) -> States:
    """The memory that a run logged."""
    with tempfile.TemporaryDirectory() as folder:
        tensors, described = fetch(run_id, (ledger.MEMORY_TENSORS, ledger.MEMORY_META), uri, Path(folder))
        return read_memory(tensors, described).states
