"""Which model families take slots: docs/architectures.md and a section of the README, found out by trying each of them.

    python scripts/architectures.py              # draw again from docs/architectures.json
    python scripts/architectures.py --measure    # try every family of the installed transformers first; about two minutes
    python scripts/architectures.py --check      # is everything as docs/architectures.json says?

Every family that `AutoModelForCausalLM` knows is made small and with random weights, and has to keep four promises; what cedkv
refuses has a reason. The tests try each family again, for the version of transformers that constraints.txt pins and no other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import transformers
from miniatures import FAMILIES
from promises import tried

from cedkv.models.quiet import quiet
from cedkv.report.tables import markdown_table

ROOT = Path(__file__).parents[1]
README, PAGE, TABLE = (
    ROOT / "README.md",
    ROOT / "docs" / "architectures.md",
    ROOT / "docs" / "architectures.json",
)
START, END = "<!-- architectures -->\n", "<!-- /architectures -->"
Row = Mapping[str, Any]


def measured() -> dict[str, Any]:
    """The whole table, of the transformers that are installed."""
    with quiet():
        rows = {family: tried(family) for family in sorted(FAMILIES)}
    return {"transformers": transformers.__version__, "families": rows}


def written(table: Mapping[str, Any]) -> str:
    """docs/architectures.json, a line for each family."""
    rows = ",\n".join(f"{json.dumps(family)}: {json.dumps(row)}" for family, row in table["families"].items())
    return f'{{"transformers": {json.dumps(table["transformers"])}, "families": {{\n{rows}\n}}}}\n'


def page(table: Mapping[str, Any]) -> str:
    """docs/architectures.md."""
    families: Mapping[str, Row] = table["families"]
    reasons = Counter(row["refused"] for row in families.values() if row["refused"])
    taken = sum(not row["refused"] for row in families.values())
    lines = [
        "# Model families",
        "",
        (
            f"Every family that `AutoModelForCausalLM` of transformers {table['transformers']} knows, {len(families)} in all. Each was "
            "made small, with random weights and a layer of each kind it has, and tried by `scripts/architectures.py --measure`; the "
            "tests try each again. This holds for that version of transformers only; what another one brings is looked at when a "
            "model is loaded, and refused in the same words."
        ),
        "",
        f"{taken} take slots, with each attention implementation named below:",
        "",
        "1. An empty memory leaves the logits as they are, bitwise, in padded rows, too.",
        "2. A document injected whole is the document read: log-probabilities differ by at most 1e-4.",
        "3. A training step moves the memory and nothing else.",
        "4. Generation with a cache gives the tokens that generation without one gives.",
        "",
        f"{len(families) - taken} do not, and are refused:",
        "",
        *markdown_table(
            ("families", "because the model ..."), [(str(n), reason) for reason, n in reasons.most_common()]
        ),
        "",
        (
            "A *sliding* layer was tried with a window shorter than the document, a *chunked* one with both in one chunk: documents that do "
            "not fit are refused. A family with an optional window was tried with one; those that can look both ways (`bert`) were told to "
            "look back only."
        ),
        "",
        *markdown_table(
            ("family", "class", "layers", "attention", "outcome"), [_line(*item) for item in families.items()]
        ),
    ]
    return "\n".join(lines) + "\n"


def _line(family: str, row: Row) -> tuple[str, ...]:
    outcome = f"refused: {row['refused']}" if row["refused"] else "takes slots"
    return (f"`{family}`", f"`{row['class']}`", row["layers"], ", ".join(row["attention"]), outcome)


def section(table: Mapping[str, Any]) -> str:
    """The part of the README between its marks."""
    families: Mapping[str, Row] = table["families"]
    taken = [family for family, row in families.items() if not row["refused"]]
    told = (
        f"- Of the {len(families)} families that transformers {table['transformers']} makes causal LMs of, {len(taken)} take slots, as "
        "tests show of each: an empty memory changes no bit, a document injected whole is the document read, training moves the "
        "memory alone, generation needs no cache. The others are refused, each with a reason ([all families](docs/architectures.md)). "
        f"These take slots: {', '.join(taken)}."
    )
    return fill(told, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False) + "\n"


def stale(table: Mapping[str, Any], readme: str, drawn: str) -> list[str]:
    """What is not as the table says."""
    again = "is not what docs/architectures.json gives; run scripts/architectures.py"
    found = [f"README.md {again}"] if readme.partition(START)[2].partition(END)[0] != section(table) else []
    return found + ([f"docs/architectures.md {again}"] if drawn != page(table) else [])


def main() -> int:
    """Measure, draw or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="try every family first")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 where something is stale"
    )
    arguments = parser.parse_args()
    if arguments.measure:
        TABLE.write_text(written(measured()))
    table = json.loads(TABLE.read_text())
    if arguments.check:
        problems = stale(table, README.read_text(), PAGE.read_text() if PAGE.exists() else "")
        print(
            "\n".join(problems)
            or "docs/architectures.md and the README are what docs/architectures.json says"
        )
        return int(bool(problems))
    PAGE.write_text(page(table))
    before, start, rest = README.read_text().partition(START)
    README.write_text(before + start + section(table) + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
