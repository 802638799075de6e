"""Stores of full-scale runs, and what verdicts over all of them take.

A few runs are logged as training logs them, with full-scale tables and the resolved configuration; the others are
copies: their rows are bulk-inserted into the database under new ids and their files copied. So the files have just been
written and are in the page cache, and no run was trained. As in an experiment, all runs have the same prompts and their
own measurements.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cedkv import ledger
from cedkv.bench.base import base_config
from cedkv.config import dump_yaml
from cedkv.core.hashing import content_hash
from cedkv.release.gates import judge
from cedkv.release.measure import on_metrics, stress_metrics
from cedkv.tracking import fast_read
from cedkv.tracking.reader import read_runs
from cedkv.tracking.record import OnRow, RunRecord, StressRow
from cedkv.tracking.store import database_path, prepare_store
from cedkv.tracking.tables import parse_config, parse_mapping, parse_rows
from cedkv.tracking.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from cedkv.config import Config
    from cedkv.tracking.api_read import ApiStore

    Source = fast_read.Database | ApiStore

EXPERIMENT = "verdicts"
WORDS = "the of opposite world count reverse instruct is what hot cold summer zürich seven answer with and not".split()
PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ledger.CONFIG_RESOLVED: ("config", parse_config),
    ledger.DATA_SPEC: ("data_spec", parse_mapping),
    ledger.TABLE_STRESS: ("stress_table", partial(parse_rows, row_type=StressRow)),
    ledger.TABLE_ON: ("on_table", partial(parse_rows, row_type=OnRow)),
}
RUN_COLUMNS = (
    "name, source_type, source_name, entry_point_name, user_id, status, end_time, source_version, lifecycle_stage, "
    "experiment_id, deleted_time"
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is: runs, of these with a full metric history, templates, table rows, steps and metrics."""

    runs: int = 1000
    histories: int = 100
    templates: int = 10
    stress: int = 2048
    on: int = 512
    steps: int = 2000
    metrics: int = 50


@dataclass(frozen=True, slots=True)
class Times:
    """What listing an experiment and judging ``runs`` of its runs took, in seconds: of the clock, then of the processor.

    ``reading``, ``parsing`` and ``judging`` are the parts of ``processor``, measured in a pass of their own, in which
    freeing the memory of a run counts to none of them.
    """

    runs: int
    listing: float
    clock: float
    processor: float
    reading: float
    parsing: float
    judging: float
    verdicts: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------ the store
def make_store(folder: Path, scale: Scale) -> str:
    """The URI of a store with one experiment of ``scale.runs`` runs; every second one fails Gate B."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    prepare_store(uri)
    templates = [log_template(uri, scale, number) for number in range(min(scale.templates, scale.runs))]
    copy_runs(database_path(uri), templates, scale)
    return uri


def log_template(uri: str, scale: Scale, number: int) -> str:
    """Log one run as training does; the first with the whole history of its metrics."""
    rng = random.Random(number)
    config = base_config([f"phase3.train.seed={number}"])
    stress, on = stress_rows(rng, scale.stress, failing=number % 2 == 1), on_rows(rng, scale.on)
    spec = data_spec(config, stress, on)
    tags = {
        ledger.TAG_SCHEMA: ledger.SCHEMA_VERSION,
        ledger.TAG_PHASE: ledger.PHASE_TRAINED,
        ledger.TAG_SOURCE_P99: ledger.SOURCE_FIXED,
        ledger.TAG_HASH_STRESS: spec["stress"]["sha256"],
        ledger.TAG_HASH_ON_EVAL: spec["on_eval"]["sha256"],
    }
    last = {ledger.NULL_INJECTION_MAX_KL: 0.0, ledger.TEACHER_CACHE_MAX_KL: 1e-6, **on_metrics(on)}
    last |= stress_metrics(stress)
    with RunWriter(uri, EXPERIMENT, tags=tags, params=config.model_dump(mode="json")) as run:
        for step in range(scale.steps if number == 0 else 1):
            run.log_metrics({f"train/metric_{n}": rng.random() for n in range(scale.metrics)}, step)
        run.log_metrics(last, scale.steps)
        run.log_text(ledger.CONFIG_RESOLVED, dump_yaml(config))
        run.log_json(ledger.DATA_SPEC, spec)
        run.log_jsonl(ledger.TABLE_STRESS, map(asdict, stress))
        run.log_jsonl(ledger.TABLE_ON, map(asdict, on))
    return run.run_id


def stress_rows(rng: random.Random, count: int, *, failing: bool) -> list[StressRow]:
    """The stress set of every run, measured: about three in a thousand prompts over the limit, or one in fifty."""
    scale = 0.0128 if failing else 0.0085
    return [
        StressRow(
            id=f"off-{n:05d}",
            prompt=prompt,
            family=WORDS[n % len(WORDS)],
            stress_delta=rng.expovariate(1 / scale),
            state=f"doc-{n % 64:02d}",
            typical=rng.expovariate(1 / 0.001),
            typical_state=f"doc-{n % 61:02d}",
            base_top="Ġ" + rng.choice(WORDS),
            student_top="Ġ" + rng.choice(WORDS),
        )
        for n, prompt in enumerate(prompts(count))
    ]


def on_rows(rng: random.Random, count: int) -> list[OnRow]:
    """The ON set of every run, of which the memory gets nine in ten right."""
    return [
        OnRow(
            id=f"on-{n:05d}",
            document=f"doc-{n % 64:02d}",
            prompt=prompt,
            answer=f" {WORDS[n % 7]} {n}",
            tokens=2,
            base_correct=False,
            student_correct=n % 10 > 0,
            teacher_correct=True,
            base_logp=-rng.uniform(8, 12),
            student_logp=-rng.random(),
            teacher_logp=-rng.random() / 2,
            kl_teacher_student=rng.random() / 10,
            kl_teacher_base=rng.uniform(3, 5),
            kl_student_base=rng.uniform(3, 5),
        )
        for n, prompt in enumerate(prompts(count))
    ]


def prompts(count: int) -> list[str]:
    """Prompts of a dozen words, the same at every call: the runs of an experiment share them."""
    rng = random.Random(0)
    return [f"{' '.join(rng.choices(WORDS, k=12))} {n}" for n in range(count)]


def data_spec(config: Config, stress: Sequence[StressRow], on: Sequence[OnRow]) -> dict[str, Any]:
    """What a run logs about its data, for these rows."""
    fixed = config.phase3.eval.off_fixed_stress
    return {
        "schema": 1,
        "stress": {
            "size": len(stress),
            "seed": fixed.seed,
            "sampling": fixed.sampling,
            "definition": fixed.definition,
            "sha256": content_hash({"id": r.id, "prompt": r.prompt, "family": r.family} for r in stress),
        },
        "on_eval": {
            "count": len(on),
            "sha256": content_hash(
                {"id": r.id, "document": r.document, "prompt": r.prompt, "answer": r.answer, "split": "eval"}
                for r in on
            ),
        },
    }


def copy_runs(database: Path, templates: list[str], scale: Scale) -> None:
    """Fill the experiment up with copies of the templates, each a minute younger than the one before."""
    # Ids that rise with time append to the indexes: ten million values go in within a minute or two.
    ids = sorted(uuid.uuid4().hex for _ in range(scale.runs - len(templates)))
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -500000")
        for number, new in enumerate(ids, start=1):
            with db:
                copy_run(db, templates[number % len(templates)], new, 60_000 * number)
                if number < scale.histories:
                    db.execute(
                        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
                        "SELECT key, value, timestamp + ?, ?, step, is_nan FROM metrics WHERE run_uuid = ?",
                        (60_000 * number, new, templates[0]),
                    )


def copy_run(db: sqlite3.Connection, old: str, new: str, later_ms: int) -> None:
    """One run's rows under another id, and its files."""
    (place,) = db.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (old,)).fetchone()
    db.execute(
        f"INSERT INTO runs (run_uuid, start_time, artifact_uri, {RUN_COLUMNS}) "  # noqa: S608 - a constant
        f"SELECT ?, start_time + ?, ?, {RUN_COLUMNS} FROM runs WHERE run_uuid = ?",
        (new, later_ms, place.replace(old, new), old),
    )
    for table, columns in (
        ("tags", "key, value"),
        ("params", "key, value"),
        ("latest_metrics", "key, value, timestamp, step, is_nan"),
    ):
        db.execute(
            f"INSERT INTO {table} (run_uuid, {columns}) SELECT ?, {columns} FROM {table} "  # noqa: S608 - constants
            "WHERE run_uuid = ?",
            (new, old),
        )
    shutil.copytree(place, place.replace(old, new))


# ---------------------------------------------------------------------------------------------------- the timing
def time_verdicts(uri: str, runs: int, source: Source) -> Times:
    """Judge the first ``runs`` runs of the experiment one by one; then take the same runs apart."""
    started = time.process_time()
    records = read_runs(EXPERIMENT, uri)
    listing = time.process_time() - started
    clock, processor = time.perf_counter(), time.process_time()
    judged = statuses(records, runs)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    parts = [time_parts(source, run_id) for run_id in judged]
    reading, parsing, judging = (sum(part) for part in zip(*parts, strict=True))
    return Times(runs, listing, clock, processor, reading, parsing, judging, tuple(judged.values()))


def statuses(records: Iterator[RunRecord], runs: int) -> dict[str, str]:
    """The verdict on each of the first ``runs``, by id."""
    return {record.run_id: str(judge(record).status) for record in islice(records, runs)}


@contextmanager
def through_client() -> Iterator[None]:
    """Within the block everything is asked of MLflow, as for a database whose schema is not known."""
    with patch.object(fast_read, "SCHEMA", "none, so that everything is asked of MLflow"):
        yield


def time_parts(source: Source, run_id: str) -> tuple[float, float, float]:
    """Processor seconds to read what a verdict needs of a run, to parse its artifacts, and to judge it."""
    started = time.process_time()
    found = source.run(run_id)
    assert found is not None
    record, files = found
    texts = [files.text(path) or "" for path in PARSERS]
    read = time.process_time()
    artifacts = {field: parse(text) for (field, parse), text in zip(PARSERS.values(), texts, strict=True)}
    parsed = time.process_time()
    judge(replace(record, **artifacts))
    return read - started, parsed - read, time.process_time() - parsed
