"""Each lever of the memory alone, at mid scale and for several seeds: runs what is missing, prints the table of what is there.

A row is `configs/mid_gated.yaml` with 50 steps and the changes named here; a seed draws other documents, questions and
OFF prompts, and another order of training. Runs are logged to the experiment `ablation` under the row's name and seed.

    python scripts/ablate.py --seeds 3407        # one process each for several seeds
    python scripts/ablate.py --table             # the table alone
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.reader import list_runs
from cedkv.tracking.record import RunRecord
from cedkv.tracking.store import project_root, resolve_uri

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "mid_gated.yaml"
EXPERIMENT = "ablation"
ROWS: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "start alone (one step)": ("phase3.train.steps=1",),
    "no gates": ("phase3.mix.slot_gate=none",),
    "gates from gain 1 and bias 0": ("phase3.warm_start.gate.start=identity",),
    "gates alone, values of the anchors": ("phase3.mix.mode=anchor",),
    "one learned gate change per slot": ("phase3.mix.gate_share=shared",),
    "one mixture per slot": ("phase3.mix.share=shared",),
    "one mixture per layer": ("phase3.mix.share=layer",),
    "keys mixed too": ("phase3.mix.mode=kv",),
    "4 slots for 8 facts": ("phase3.memory.slots=4",),
    "12 slots": ("phase3.memory.slots=12",),
    "16 slots": ("phase3.memory.slots=16",),
    "4 sink slots": ("phase3.memory.sink_slots=4",),
    "4 sink slots, no gates": ("phase3.memory.sink_slots=4", "phase3.mix.slot_gate=none"),
    "last layer only": ("phase3.layer_scope.injection=[7]", "phase3.layer_scope.mixture=[7]"),
    "one sliding layer more": (
        "phase3.layer_scope.injection=[5,6,7]",
        "phase3.layer_scope.mixture=[5,6,7]",
    ),
    "anchors blind to OFF": ("phase3.warm_start.anti_steer_strength=0",),
    "anchors shun OFF, 1.0": ("phase3.warm_start.anti_steer_strength=1",),
    "hard pool mined every 10 steps": ("phase3.train.hard_pool_refresh=10",),
    "hard pool mined once": ("phase3.train.hard_pool_refresh=50",),
    "CVaR of the worst 5 %": ("phase3.loss.off.cvar_tail_fraction=0.05",),
    "mean OFF loss": ("phase3.loss.off.cvar_tail_fraction=1",),
    "24 phrasings a fact": ("data.on_train_prompts_per_fact=24",),
}
COLUMNS = {
    "ON": ledger.ON_ACC_STUDENT,
    "OFF p99": ledger.P99_STRESS,
    "95 % bound": ledger.P99_UPPER,
}


def run_name(row: str, seed: int) -> str:
    """What a row's run with this seed is called in the log."""
    return f"{row} · seed {seed}"


def finished(uri: str) -> dict[str, RunRecord]:
    """Finished runs of the experiment by name; the latest where a name was run again."""
    try:
        runs = list_runs(EXPERIMENT, uri, view_all=False)
    except UserError:  # nothing logged yet
        return {}
    return {run.name: run for run in runs if run.status == "FINISHED"}


def launch(row: str, seed: int) -> None:
    """Train one row in a process of its own; its failure ends the sweep."""
    overrides = (
        "phase3.train.steps=50",
        *ROWS[row],
        f"data.seed={seed}",
        f"phase3.train.seed={seed}",
        f"tracking.experiment={EXPERIMENT}",
        f"tracking.run_name={run_name(row, seed)}",
    )
    sets = [f"--set={override}" for override in overrides]
    subprocess.run(
        [sys.executable, "-m", "cedkv", "--config", str(CONFIG), "--phase", "3", *sets], cwd=ROOT, check=True
    )


def table(runs: dict[str, RunRecord], seeds: list[int]) -> list[str]:
    """Median and range over the seeds that are there; lines of Markdown."""
    lines = ["| row | seeds | " + " | ".join(COLUMNS) + " |", "| --- | ---: |" + " ---: |" * len(COLUMNS)]
    for row in ROWS:
        found = [runs[run_name(row, seed)] for seed in seeds if run_name(row, seed) in runs]
        if found:
            cells = [_spread([run.metrics[name] for run in found]) for name in COLUMNS.values()]
            lines.append(f"| {row} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def _spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3407, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    uri = resolve_uri(None, os.environ, project_root(Path.cwd()))
    for seed in options.seeds if not options.table else ():
        for row in options.rows:
            if run_name(row, seed) not in finished(uri):
                launch(row, seed)
    print("\n".join(table(finished(uri), options.seeds)))


if __name__ == "__main__":
    main()
