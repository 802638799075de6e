"""How often does a gate accept a memory that drifts on too many prompts? A simulation, as a table and a figure.

    python scripts/simulate_gates.py --figure docs/gates.svg

A memory whose true rate of prompts over the limit is r is judged on n prompts drawn anew in every run; whoever repeats
keeps the run that passes. What passes is asked of the same functions that the gates use, for every possible number of
prompts over the limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom

from cedkv.core import stats
from cedkv.release.certify import MAX_RATE

STRESS, SEALED = 2048, 8192
RUNS = 5
DELTA = 0.05
LIMIT, OVER, UNDER = 0.05, 0.06, 0.01  # nats
RATES = (0.005, 0.0075, 0.009, 0.01, 0.011, 0.0125, 0.015, 0.02)
EXPERIMENTS = 20_000
SEED = 3407


@dataclass(frozen=True)
class Gate:
    """A way to judge: how many prompts, and whether `over` of them over the limit still pass."""

    name: str
    n: int
    accepts: Callable[[int, int], bool]

    def most(self) -> int:
        """The largest number of prompts over the limit that passes."""
        passing = [over for over in range(self.n // 20) if self.accepts(over, self.n)]
        assert passing == list(range(len(passing)))
        return len(passing) - 1


def values(over: int, n: int) -> list[float]:
    """KLs of n prompts of which `over` lie over the limit."""
    return [OVER] * over + [UNDER] * (n - over)


GATES = (
    Gate("p99", STRESS, lambda k, n: stats.order_statistic_quantile(values(k, n)) <= LIMIT),
    Gate("95 % bound", STRESS, lambda k, n: stats.upper_bound(values(k, n)) <= LIMIT),
    Gate("sealed set", SEALED, lambda k, n: stats.clopper_pearson_upper(k, n, 1 - DELTA / RUNS) <= MAX_RATE),
)


def simulate(gate: Gate, rate: float, repeats: int, generator: np.random.Generator) -> float:
    """Share of experiments in which one of `repeats` runs passes."""
    over = generator.binomial(gate.n, rate, size=(EXPERIMENTS, repeats))
    return float((over <= gate.most()).any(1).mean())


def exact(gate: Gate, rate: float, repeats: int) -> float:
    """The same from the binomial distribution."""
    return float(1.0 - (1.0 - binom.cdf(gate.most(), gate.n, rate)) ** repeats)


def table() -> str:
    """Markdown: simulated chances to pass, and the largest distance from the exact ones."""
    generator = np.random.default_rng(SEED)
    cases = [(gate, repeats) for gate in GATES for repeats in (1, RUNS)]
    head = ["true rate", *(f"{gate.name}, {'one run' if m == 1 else f'best of {m}'}" for gate, m in cases)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    apart = 0.0
    for rate in RATES:
        found = [simulate(gate, rate, repeats, generator) for gate, repeats in cases]
        apart = max(apart, *(abs(f - exact(g, rate, m)) for f, (g, m) in zip(found, cases, strict=True)))
        lines.append(f"| {rate:.2%} | {' | '.join(f'{share:.3f}' for share in found)} |")
    allowed = ", ".join(f"{gate.name} {gate.most()} of {gate.n}" for gate in GATES)
    return "\n".join(
        [*lines, "", f"Passing: {allowed} at most. Largest distance from the exact chance: {apart:.4f}."]
    )


def figure(path: Path) -> None:
    """Chance to pass over the true rate; what lies right of 1 % is a false accept."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cedkv"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(figsize=(7, 4))
    rates = np.linspace(0.005, 0.02, 151)
    for gate, colour in zip(GATES, ("#D55E00", "#0072B2", "#009E73"), strict=True):
        for repeats, style in ((1, ":"), (RUNS, "-")):
            chance = [exact(gate, rate, repeats) for rate in rates]
            label = f"{gate.name}, {'one run' if repeats == 1 else f'best of {repeats}'}"
            axes.plot(100 * rates, chance, style, color=colour, label=label)
    axes.axvspan(1.0, 2.0, color="0.93")
    axes.axhline(DELTA, color="0.5", linewidth=0.8)
    axes.annotate("5 %", (1.95, DELTA + 0.01), color="0.4", ha="right")
    axes.annotate("false accepts", (1.5, 0.95), color="0.4", ha="center")
    axes.set(
        xlabel="true share of prompts over 0.05 nats (%)",
        ylabel="chance to pass",
        xlim=(0.5, 2),
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 0.92))
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    """Print the table; draw the figure where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write the figure as SVG")
    arguments = parser.parse_args()
    print(table())
    if arguments.figure is not None:
        figure(arguments.figure)


if __name__ == "__main__":
    main()
