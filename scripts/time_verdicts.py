"""How long do verdicts over a whole experiment take? Make a store of full-scale runs, judge all of them, print a table.

The store lies in a temporary folder and goes with it; `cedkv.bench.verdicts` says how it is made.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.bench.verdicts import EXPERIMENT, Scale, Times, make_store, through_client, time_verdicts
from cedkv.tracking import fast_read
from cedkv.tracking.api_read import ApiStore
from cedkv.tracking.store import database_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["EXPERIMENT", "Scale", "main", "measure", "table"]


def table(scale: Scale, rows: Sequence[tuple[str, Times]]) -> Iterator[str]:
    """Markdown: one line per way of reading, scaled to all runs."""
    yield "| read through | clock s | processor s | ms per run | listing s | reading s | parsing s | judging s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, times in rows:
        factor = scale.runs / times.runs
        totals = [times.listing + factor * part for part in (times.clock, times.processor)]
        parts = [factor * part for part in (times.reading, times.parsing, times.judging)]
        cells = (*totals, 1000 * totals[1] / scale.runs, times.listing, *parts)
        yield f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def measure(scale: Scale, sample: int, folder: Path) -> Iterator[str]:
    """Make the store in ``folder`` and time both ways of reading it; what to print, line by line."""
    started = time.perf_counter()
    uri = make_store(folder, scale)
    yield (
        f"{scale.runs} runs, {scale.stress} stress and {scale.on} ON rows each, {scale.histories} with a history of "
        f"{scale.steps} steps x {scale.metrics} metrics; a database of "
        f"{database_path(uri).stat().st_size / 1e9:.1f} GB, made in {time.perf_counter() - started:.0f} s"
    )
    database = fast_read.open_database(database_path(uri))
    assert database is not None, "the store was made by the MLflow that is installed"
    # Making the store took MLflow, whose 250,000 objects no process that reads the file alone has to collect.
    gc.freeze()
    with closing(database):
        direct = time_verdicts(uri, scale.runs, database)
    gc.unfreeze()
    with through_client():
        through_api = time_verdicts(uri, sample, ApiStore(uri))
    assert through_api.verdicts == direct.verdicts[:sample], "both ways give the same verdicts"
    yield "verdicts: " + ", ".join(f"{count} {status}" for status, count in Counter(direct.verdicts).items())
    yield ""
    name = f"MLflow's client ({sample} runs, scaled)"
    yield from table(scale, [("the database file", direct), (name, through_api)])


def main() -> int:
    """Parse the command line, measure, print."""
    full = Scale()
    parser = argparse.ArgumentParser(description="Time the verdicts over an experiment of full-scale runs.")
    parser.add_argument("--runs", type=int, default=full.runs, help="runs of the experiment (%(default)s)")
    parser.add_argument(
        "--histories", type=int, default=full.histories, help="runs with a full metric history (%(default)s)"
    )
    parser.add_argument(
        "--sample", type=int, default=20, help="runs read through MLflow's client (%(default)s)"
    )
    options = parser.parse_args()
    if not 1 <= options.sample <= options.runs:
        parser.error(f"--sample {options.sample} is not from 1 to --runs {options.runs}")
    scale = Scale(runs=options.runs, histories=options.histories)
    with tempfile.TemporaryDirectory() as folder:
        for line in measure(scale, options.sample, Path(folder)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
