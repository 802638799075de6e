"""The tables of the README's "Beside its peers", made from docs/quality.json and docs/quality-stories.json.

cedkv bench quality --config configs/base.yaml --seeds 3410,3411,3412 --kvpress PYTHON --json docs/quality.json
cedkv bench quality --config configs/stories.yaml --seeds 3410,3411,3412 --kvpress PYTHON --json docs/quality-stories.json
python scripts/readme_peers.py            # write the tables
python scripts/readme_peers.py --check    # are they what the files say?
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
README = ROOT / "README.md"
NUMBERS = {"peers": ROOT / "docs" / "quality.json", "peers-stories": ROOT / "docs" / "quality-stories.json"}
"""By the name of its section."""
HEADS = ("", "ON gain", "log-prob. gain", "OFF p99 (nats)", "OFF max", "bytes", "build s", "seeds")


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
    gain, logp, p99, most = (
        _spread([result["metrics"][name] for result in own])
        for name in (ledger.ON_GAIN, ledger.ON_LOGP_GAIN, ledger.P99_STRESS, ledger.MAX_STRESS)
    )
    size, seconds = (statistics.fmean(result[name] for result in own) for name in ("bytes", "seconds"))
    cells = (
        f"{bold}{gain}{bold}",
        logp,
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


def written(readme: str, name: str, content: Mapping[str, Any]) -> str:
    """The README with the section of that name as ``content`` has it."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = readme.partition(start)
    return before + start + section(content) + end + rest.partition(end)[2]


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where it is stale")
    arguments = parser.parse_args()
    readme = told = README.read_text()
    for name, numbers in NUMBERS.items():
        told = written(told, name, json.loads(numbers.read_text()))
    if arguments.check:
        print(f"the README is {'what the files say' if told == readme else 'not what the files say'}")
        return int(told != readme)
    README.write_text(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
