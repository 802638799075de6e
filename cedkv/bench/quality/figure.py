"""A benchmark at a glance: what memories gain ON, against what they disturb OFF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cedkv import ledger

if TYPE_CHECKING:
    from cedkv.bench.quality.report import Report

# Okabe and Ito's colours, all of which show on white and on black; a family of methods has a colour, a variant a shape.
OURS, CACHE, SOFT, LORA, GATE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#009E73", "#808080"
STYLE = {
    "full_context": (GREY, "*"),
    "random_slots": (GREY, "x"),
    "attention_matching": (CACHE, "P"),
    "kvpress_knorm": (CACHE, "v"),
    "kvpress_expected": (CACHE, "^"),
    "prefix": (SOFT, "s"),
    "prefix_off": (SOFT, "D"),
    "cartridge": (SOFT, "<"),
    "cartridge_off": (SOFT, ">"),
    "lora": (LORA, "h"),
    "lora_off": (LORA, "d"),
    "phase2": (OURS, "X"),
    "phase3": (OURS, "o"),
}
"""Colour and marker of every method but the base, whose drift of 0 has no place on a logarithmic axis."""
SMALLEST = 1e-4


def draw(report: Report, path: Path) -> bool:
    """Write the figure as SVG, transparent; False where no method has a place in it. Lines reach over the seeds' range."""
    lines = [line for line in report.lines if line.method in STYLE]
    if not lines:
        return False
    import matplotlib as mpl

    mpl.use("agg" if path.suffix == ".png" else "svg")
    mpl.rcParams |= {
        "svg.hashsalt": "cedkv",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    mpl.rcParams |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
    )
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(figsize=(7.4, 3.6), layout="constrained")
    for line in lines:
        colour, marker = STYLE[line.method]
        p99, gain = ([max(v, SMALLEST) for v in line.values(ledger.P99_STRESS)], line.values(ledger.ON_GAIN))
        x, y = max(line.numbers.p99, SMALLEST), line.numbers.gain
        axes.plot([min(p99), max(p99)], [y, y], "-", color=colour, linewidth=1)
        axes.plot([x, x], [min(gain), max(gain)], "-", color=colour, linewidth=1)
        # Hollow: it was not told about OFF prompts, its variant was.
        face = "none" if f"{line.method}_off" in STYLE else colour
        size = {"phase3": 10, "full_context": 12}.get(line.method, 7)
        axes.plot(
            x,
            y,
            marker,
            color=colour,
            markerfacecolor=face,
            markersize=size,
            label=line.name,
            linestyle="none",
        )
    axes.axvline(report.limit, color=GATE, linewidth=1.2)
    axes.annotate(
        f"gate: p99 ≤ {report.limit:g}", (report.limit, 1.0), (4, 2), xycoords=("data", "axes fraction"),
        textcoords="offset points", color=GATE,
    )  # fmt: skip
    axes.set(xscale="log", ylim=(min(-0.05, *axes.get_ylim()), None))
    axes.set(xlabel="OFF: p99 of KL(student ‖ base), worst memory, nats", ylabel="ON gain, exact match")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), labelspacing=0.6)
    metadata = {} if path.suffix == ".png" else {"Date": None}
    plot.savefig(path, metadata=metadata, dpi=150, transparent=True)
    plt.close(plot)
    return True
