"""How long verdicts over an experiment take: full-scale runs in a store, judged from the log alone."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from cedkv.bench import verdicts
from cedkv.bench.options import Options
from cedkv.bench.rows import Agreement, Row, Section
from cedkv.bench.timing import interleaved
from cedkv.tracking.reader import read_runs

NAME = "gate"
STEPS, METRICS = 200, 50


def gate_section(options: Options) -> Section:
    """Judge all runs from the database file, and some through MLflow's client; both must give the same verdicts."""
    runs, sample = options.scale.runs, options.scale.sample
    scale = verdicts.Scale(
        runs=runs, histories=max(1, runs // 20), templates=min(10, runs // 2), steps=STEPS, metrics=METRICS
    )
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        uri = verdicts.make_store(Path(folder), scale)

        def direct() -> None:
            found["direct"] = verdicts.statuses(read_runs(verdicts.EXPERIMENT, uri), runs)

        def client() -> None:
            with verdicts.through_client():
                found["client"] = verdicts.statuses(read_runs(verdicts.EXPERIMENT, uri), sample)

        gc.freeze()  # MLflow's objects, which no process that reads the file alone has to collect
        try:
            seconds = interleaved({"direct": direct, "client": client}, min(3, options.scale.repeats))
        finally:
            gc.unfreeze()
    differ = sum(found["direct"][run] != status for run, status in found["client"].items())
    unexpected = abs(list(found["direct"].values()).count("fail") - runs / 2)
    each = f"{scale.stress} stress and {scale.on} ON rows each"
    rows = (
        Row(
            NAME,
            "the database file",
            f"{runs} runs, {each}",
            "ms per run",
            seconds["direct"].times(1000 / runs),
            Agreement(
                "the half of the runs that was made to fail, verdicts too many or too few", unexpected, 0.0
            ),
            {"runs": runs},
        ),
        Row(
            NAME,
            "MLflow's client",
            f"the first {sample} of them",
            "ms per run",
            seconds["client"].times(1000 / sample),
            Agreement("the database file, verdicts that differ", differ, 0.0),
            {"runs": sample},
        ),
    )
    total = seconds["direct"].median
    note = (
        f"{runs} verdicts take {total:.2f} s. {scale.templates} runs were logged by RunWriter, the others are copies; "
        "files are in the page cache."
    )
    return Section(NAME, "Verdicts over an experiment", rows, (note,), {"gate_seconds": total})
