"""How long the dashboard takes to follow many long runs: a table on standard output.

Real runs of a store of its own, logged as training logs: 30 metrics at every step, the p99 at every fifth. Measured is
what a refresh does: list the runs, read what is new, draw the page.

    python scripts/time_dashboard.py --runs 20 --steps 2000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cedkv import ledger
from cedkv.report.dashboard.draw import draw_page
from cedkv.report.dashboard.pages import read_pages
from cedkv.tracking.reader import metric_history
from cedkv.tracking.writer import RunWriter
from cedkv.train.desk import Desk

EXPERIMENT = "followed"
EACH_STEP = (
    *(ledger.LOSS, ledger.LOSS_ON, ledger.LOSS_OFF, ledger.LOSS_STR, ledger.LAMBDA_OFF, ledger.TOPK),
    *(ledger.STEPS_PER_SECOND, ledger.GRAD_NORM, ledger.DELIMITER_SLOT_MAX, ledger.WARN_DELIMITER_SLOTS),
    *map(ledger.atom_mass, ledger.ATOM_TYPES),
    *(f"more/{n}" for n in range(14)),
)
EACH_TICK = (ledger.P99_RAW, ledger.P99_EMA, ledger.P99_STRESS, ledger.PROXY_OFF_SPEARMAN)


def log(run: RunWriter, start: int, stop: int) -> None:
    """The steps from `start` to `stop` of a run."""
    for step in range(start, stop):
        names = EACH_STEP + (EACH_TICK if step % 5 == 0 else ())
        run.log_metrics({name: 1.0 / (1 + step + place) for place, name in enumerate(names)}, step)


def timed(work: Callable[[], object], turns: int = 5) -> float:
    """Median seconds."""
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Log, follow, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    pages = read_pages(Path(__file__).parents[1] / "dashboards")
    dual = next(page for page in pages if page.slug == "dual")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        ids = []
        for _ in range(options.runs):
            with RunWriter(uri, EXPERIMENT) as run:
                log(run, 0, options.steps)
            ids.append(run.run_id)
        desk = Desk(EXPERIMENT, uri, pages)
        rows = [("first look, everything read", timed(lambda: desk.view(ids), 1))]
        rows.append(("refresh, nothing new", timed(lambda: desk.view(ids))))
        with RunWriter(uri, EXPERIMENT) as alive:
            log(alive, 0, options.steps)
            alive.flush()
            desk.view([*ids[1:], alive.run_id])
            steps = iter(range(options.steps, options.steps + 1000, 30))

            def refresh() -> None:
                start = next(steps)
                log(alive, start, start + 30)
                alive.flush()
                began.append(time.perf_counter())
                desk.view([*ids[1:], alive.run_id])
                ended.append(time.perf_counter())

            began: list[float] = []
            ended: list[float] = []
            for _ in range(5):
                refresh()
            taken = [end - start for start, end in zip(began, ended, strict=True)]
            rows.append(("refresh, 30 new steps", statistics.median(taken)))
            view = desk.view([*ids[1:], alive.run_id])
            rows.append((f"draw the page {dual.page!r}", timed(lambda: draw_page(dual, view), 3)))
        names = [*EACH_STEP, *EACH_TICK]
        rows.append(
            (
                "for comparison: every history read anew",
                timed(lambda: [metric_history(run_id, names, uri) for run_id in ids], 1),
            )
        )
    print(f"{options.runs} runs x {options.steps} steps x {len(EACH_STEP)} metrics\n")
    for name, seconds in rows:
        print(f"{name:42} {seconds * 1000:8.0f} ms")


if __name__ == "__main__":
    main()
