"""A measurement at a glance: pairs per second as bars, and how time and memory grow as lines."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cedkv.bench import growth, stress
from cedkv.bench.rows import Row, Section

# Colours that people with any colour vision tell apart (Okabe and Ito).
OURS, PEER, FLOOR = "#0072B2", "#999999", "#009E73"
AXIS_COLOURS = dict(zip(growth.AXES, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
MISSING = "no figure: matplotlib is not installed (pip install -c constraints.txt -e '.[peers]')"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(sections: Sequence[Section], path: Path) -> bool:
    """Write the figure as SVG (or what the name's ending says); False where no section has anything to draw."""
    by_name = {section.name: section for section in sections}
    panels = [_bars] * (stress.NAME in by_name) + [_time, _memory] * (growth.NAME in by_name)
    if not panels:
        return False
    import matplotlib as mpl

    mpl.use("agg" if path.suffix == ".png" else "svg")
    mpl.rcParams |= {
        "svg.hashsalt": "cedkv",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot as plt

    widths = [1.7 if panel is _bars else 1.0 for panel in panels]
    plot, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.1 * sum(widths), 3.2),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    for panel, place in zip(panels, axes[0], strict=True):
        panel(place, by_name[stress.NAME if panel is _bars else growth.NAME].rows)
    plot.savefig(path, metadata={} if path.suffix == ".png" else {"Date": None}, dpi=150)
    plt.close(plot)
    return True


def _bars(place: Any, rows: Sequence[Row]) -> None:
    """Medians with quartiles, the fastest on top; the floor is no rival and looks like none."""
    rows = sorted((row for row in rows if row.unit == "pairs/s"), key=lambda row: row.value.median)
    rows = [row for row in rows if row.name != "floor, square product"]
    for height, row in enumerate(rows):
        colour = FLOOR if row.name == stress.FLOOR else OURS if row.name.startswith(stress.OURS) else PEER
        hollow = (
            {"facecolor": "none", "edgecolor": colour, "hatch": "////"}
            if colour == FLOOR
            else {"color": colour}
        )
        low, high = row.value.quartiles
        place.barh(height, row.value.median, height=0.62, **hollow)
        place.plot([low, high], [height, height], color="black", linewidth=1.2)
        place.annotate(
            f"{row.value.median:,.0f}",
            (max(high, row.value.median), height),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    place.set_yticks(range(len(rows)), [row.name.replace(", slots", ",\nslots") for row in rows])
    place.tick_params(axis="y", length=0)
    place.set_xlim(0, 1.18 * max(row.value.quartiles[1] for row in rows))
    place.locator_params(axis="x", nbins=5)
    place.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    place.set_xlabel("pairs (prompt, state) per second")
    place.set_title("Stress evaluation", loc="left", fontsize=10, fontweight="bold")


def _time(place: Any, rows: Sequence[Row]) -> None:
    _lines(
        place,
        {axis: [(row.extra["size"], row.value.median) for row in _along(rows, axis)] for axis in growth.AXES},
    )
    place.set_title("Time grows with", loc="left", fontsize=10, fontweight="bold")
    place.set_ylabel("times that of the smallest")


def _memory(place: Any, rows: Sequence[Row]) -> None:
    _lines(
        place,
        {
            axis: [(row.extra["size"], row.extra["peak_mib"]) for row in _along(rows, axis)]
            for axis in growth.AXES
        },
    )
    place.set_title("Peak memory grows with", loc="left", fontsize=10, fontweight="bold")


def _along(rows: Sequence[Row], axis: str) -> list[Row]:
    return [row for row in rows if row.name.startswith(f"{axis} ") and "size" in row.extra]


def _lines(place: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Relative to each line's first point, on logarithmic axes, with a dotted line where growth is proportional."""
    lines = {axis: points for axis, points in lines.items() if points}
    widest = max(points[-1][0] / points[0][0] for points in lines.values())
    highest = max(y / points[0][1] for points in lines.values() for _, y in points)
    place.plot([1, widest], [1, widest], ":", color="0.6", linewidth=1, label="in proportion")
    for axis, points in lines.items():
        x, y = (
            [value / points[0][i] for value in column] for i, column in enumerate(zip(*points, strict=True))
        )
        place.plot(x, y, "o-", color=AXIS_COLOURS[axis], markersize=3.5, linewidth=1.4, label=axis)
    place.set_xscale("log", base=2)
    place.set_yscale("log", base=2)
    place.set_ylim(0.5, 2 * max(highest, widest))
    for which in (place.xaxis, place.yaxis):
        which.set_major_formatter(lambda value, _: f"{value:g}")
    place.set_xlabel("times the smallest size")
    place.legend(frameon=False, fontsize=8, loc="upper left", handlelength=1.4)
