"""ON kept against the OFF tail of logged runs, with the gate lines: the figure of the README.

    python scripts/plot_tradeoff.py docs/tradeoff.svg RUN_ID ...

Only numbers that the gate evaluator has proven from the per-prompt tables are drawn.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.core.verdict import GateReport
from cedkv.release.gates import GATE_B, judge, limit_of
from cedkv.release.measure import measure
from cedkv.tracking.reader import read_run
from cedkv.tracking.record import RunRecord
from cedkv.tracking.store import project_root, resolve_uri

_COLOURS = {"2": "#E69F00", "3": "#0072B2"}
_NAMES = {"2": "Phase 2, anchors", "3": "Phase 3, trained"}


def proven(record: RunRecord, name: str) -> float:
    """A metric as its table gives it; `UserError` where the log does not prove it."""
    found = measure(record)[name]
    if found.value is None or found.problem:
        raise UserError(f"{name} of run {record.run_id}: {found.problem or 'not logged'}; draw another run")
    return found.value


def draw(records: list[RunRecord], path: Path) -> None:
    """One point per run; the bar reaches to the 95 % upper bound of its p99."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cedkv"
    from matplotlib import pyplot as plt

    limits = {limit_of(record, GATE_B) for record in records}
    teachers = {round(proven(record, ledger.ON_ACC_TEACHER), 3) for record in records}
    plot, axes = plt.subplots(figsize=(7, 2.6))
    for record in records:
        phase = str(record.tags.get(ledger.TAG_PHASE))
        p99, upper = (proven(record, name) for name in (ledger.P99_STRESS, ledger.P99_UPPER))
        on = proven(record, ledger.ON_ACC_STUDENT)
        axes.plot([p99, upper], [on, on], "-", color=_COLOURS[phase], linewidth=1)
        axes.plot(p99, on, "o", color=_COLOURS[phase], label=f"{_NAMES[phase]} ({record.run_id[:8]})")
    for limit in limits:
        axes.axvline(limit or 0.0, color="#009E73", linewidth=1)
        axes.annotate(
            f"Gate B: p99 ≤ {limit:g}",
            (limit or 0.0, 0.06),
            color="#009E73",
            xytext=(4, 0),
            textcoords="offset points",
        )
    for teacher in teachers:
        axes.axhline(teacher, color="0.5", linewidth=0.8, linestyle="--")
        axes.annotate(
            "document in context", (0.35, teacher), color="0.4", xytext=(0, -11), textcoords="offset points"
        )
    axes.set(xscale="log", xlim=(2e-3, 40), ylim=(0, 1.05))
    axes.set(xlabel="OFF: p99 of KL(student ‖ base), worst state, nats", ylabel="ON: exact match")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def summary(report: GateReport) -> str:
    """One line per run, beside the figure."""
    return f"{report.run_id}  phase {report.phase}  Gate A {report.gate_a}  Gate B {report.gate_b}"


def main() -> None:
    """Draw the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path, metavar="FILE", help="SVG to write")
    parser.add_argument("runs", nargs="+", metavar="RUN_ID")
    arguments = parser.parse_args()
    uri = resolve_uri(None, os.environ, project_root(Path.cwd()))
    records = [read_run(run_id, uri) for run_id in arguments.runs]
    draw(records, arguments.figure)
    for record in records:
        print(summary(judge(record)))


if __name__ == "__main__":
    main()
