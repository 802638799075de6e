"""The table of the README's "Beside its peers", made from docs/quality.json.

cedkv bench quality --config configs/base.yaml --seeds 3410,3411,3412 --kvpress PYTHON --json docs/quality.json
python scripts/readme_peers.py            # write the table
python scripts/readme_peers.py --check    # is it what docs/quality.json says?
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cedkv import ledger
from cedkv.bench.quality.options import METHODS
from cedkv.report.tables import markdown_table

ROOT = Path(__file__).parents[1]
README, NUMBERS = ROOT / "README.md", ROOT / "docs" / "quality.json"
START, END = "<!-- peers -->\n", "<!-- /peers -->"
HEADS = ("", "ON gain", "OFF p99 (nats)", "OFF max", "bytes", "build s", "seeds")


def section(content: Mapping[str, Any]) -> str:
    """A line for each method that has numbers; then the targets."""
    lines = markdown_table(HEADS, filter(None, (_row(content["results"], method) for method in METHODS)))
    met = [
        f"- {target['name']}: {target['measured']} ({'met' if target['met'] else '**missed**'})"
        for target in content["targets"]
    ]
    return "\n".join([*lines, "", *met]) + "\n"


def _row(results: Sequence[Mapping[str, Any]], method: str) -> tuple[str, ...] | None:
    own = [result for result in results if result["method"] == method and not result["absent"]]
    if not own:
        return None
    bold = "**" if method == "phase3" else ""
    gain, p99, most = (
        _spread([result["metrics"][name] for result in own])
        for name in (ledger.ON_GAIN, ledger.P99_STRESS, ledger.MAX_STRESS)
    )
    size, seconds = (statistics.fmean(result[name] for result in own) for name in ("bytes", "seconds"))
    cells = (
        f"{bold}{gain}{bold}",
        f"{bold}{p99}{bold}",
        most,
        f"{size:,.0f}",
        f"{seconds:,.0f}",
        str(len(own)),
    )
    return (f"{bold}{METHODS[method]}{bold}", *cells)


def _spread(values: Sequence[float]) -> str:
    """The mean, and the range where there is one."""
    told = f"{statistics.fmean(values):.3g}"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return told if low == high else f"{told} ({low} to {high})"


def stale(readme: str, content: Mapping[str, Any]) -> bool:
    """Whether the README says something else."""
    return readme.partition(START)[2].partition(END)[0] != section(content)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where it is stale")
    arguments = parser.parse_args()
    content = json.loads(NUMBERS.read_text())
    if arguments.check:
        old = stale(README.read_text(), content)
        print(
            "the README is not what docs/quality.json says"
            if old
            else "the README is what docs/quality.json says"
        )
        return int(old)
    before, start, rest = README.read_text().partition(START)
    README.write_text(before + start + section(content) + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
