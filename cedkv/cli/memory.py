"""Commands that write a run's memory to a folder, and that look at such folders."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cedkv.cli import shared
from cedkv.cli.generate import model_for
from cedkv.cli.judge import one_run, store

if TYPE_CHECKING:
    from cedkv.memory.export import StoredMemory

DIFFERENT = 10
"""Status of `cedkv memory diff` where two memories differ."""


def memory_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of ``cedkv memory``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    of_export = action("export", "write the memory of a run that passed to a folder", export)
    shared.run(of_export)
    of_export.add_argument("--out", metavar="DIR", help="a new folder; default: memory-RUN")
    of_export.add_argument(
        "--force", action="store_true", help="whatever the gates say; their verdict is in it"
    )
    of_inspect = action("inspect", "print what a memory is", inspect)
    of_inspect.add_argument("folder", metavar="DIR", help="an exported memory")
    of_inspect.add_argument(
        "--state", metavar="NAME", help="its slots one by one: anchor, atom types, candidates"
    )
    of_inspect.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")
    of_diff = action("diff", "say in what two memories differ; status 10 where they do", diff)
    of_diff.add_argument("folder", metavar="DIR", help="an exported memory")
    of_diff.add_argument("other", metavar="OTHER", help="another one")
    of_verify = action("verify", "check a memory: hash, shapes, numbers; its model; its run", verify)
    of_verify.add_argument("folder", metavar="DIR", help="an exported memory")
    shared.model(of_verify, "check that it was made for this one")
    of_verify.add_argument(
        "--log", action="store_true", help="check that its run logged it; what its log says now"
    )
    shared.store(of_verify)


def export(arguments: argparse.Namespace) -> int:
    """Write a run's memory to a folder; status 10 or 11, and no folder, where the gates do not pass it."""
    from cedkv.api.folder import NotPassedError
    from cedkv.api.folder import export as write
    from cedkv.release.exit_codes import of_status

    run_id = one_run(arguments)
    folder = Path(arguments.out or f"memory-{run_id[:8]}")
    try:
        verdict = write(run_id, store(arguments), folder, force=arguments.force)
    except NotPassedError as error:
        print(f"cedkv: {error}", file=sys.stderr)
        return of_status(error.status)
    print(f"{folder}  run {run_id[:8]}  Gate A {verdict.gates.gate_a}  Gate B {verdict.gates.gate_b}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a memory is, and with --state each of its slots."""
    from cedkv.api.inspection import facts, slots_of
    from cedkv.api.memory import stored_in
    from cedkv.report.tables import jsonable

    stored = stored_in(Path(arguments.folder))
    found = facts(stored)
    rows = slots_of(stored, _known(stored, arguments.state)) if arguments.state else None
    if arguments.format == "json":
        content = found | {"names": list(stored.documents)} | ({} if rows is None else {"state": rows})
        print(json.dumps(jsonable(content), indent=2))
        return 0
    for line in _facts(found) + (["", *_slots(rows)] if rows is not None else _names(stored)):
        print(line)
    return 0


def _known(stored: StoredMemory, state: str) -> str:
    from cedkv.api.memory import Memory

    Memory(stored.states, stored.documents, stored.origin).group(state)
    return state


def _facts(found: dict[str, Any]) -> list[str]:
    from cedkv.report.tables import aligned, shown

    flat: dict[str, Any] = {}
    for name, value in found.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {key}".strip(): item for key, item in items}
    rows = [[name, shown(_said(value))] for name, value in flat.items()]
    return aligned(rows, (False, False))


def _said(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, float | str) else str(value)


def _names(stored: StoredMemory) -> list[str]:
    from cedkv.report import escape

    names = [escape.plain(name, 40) for name in stored.documents[:12]]
    more = len(stored.documents) - len(names)
    return [
        "",
        f"states  {', '.join(names)}{f' and {more} more' if more > 0 else ''}",
        "one of them, slot by slot: --state NAME",
    ]


def _slots(rows: list[dict[str, Any]]) -> list[str]:
    from cedkv.report.tables import aligned

    table = [["slot", "anchors", "mass by atom type", "candidates, position:weight"]]
    for row in rows:
        mass = "  ".join(f"{kind} {share:.2f}" for kind, share in row["mass"].items())
        best = "  ".join(f"{one['position']}:{one['weight']:.2f}" for one in row["candidates"])
        table.append([str(row["slot"]), " ".join(map(str, row["anchors"])), mass, best])
    return aligned(table, (True, False, False, False))


def diff(arguments: argparse.Namespace) -> int:
    """Say in what two memories differ; status 10 where they do."""
    from cedkv.api.inspection import differences
    from cedkv.api.memory import stored_in
    from cedkv.report import escape

    found = differences(stored_in(Path(arguments.folder)), stored_in(Path(arguments.other)))
    for line in found:
        print(escape.plain(line))
    if not found:
        print("the two inject the same")
    return DIFFERENT if found else 0


def verify(arguments: argparse.Namespace) -> int:
    """Check a memory's folder; with --model that it is that model's, with --log that it is what its run logged."""
    from cedkv.api.memory import Memory, stored_in

    stored = stored_in(Path(arguments.folder))
    memory = Memory.load(arguments.folder)
    print(f"readable, of format {stored.meta['format']}; hash, shapes and numbers agree")
    if arguments.model is not None:
        loaded = model_for(arguments, memory)
        memory.check(loaded.model, loaded.tokenizer)
        known = (
            "weights, settings and tokenizer" if memory.origin.tokenizer_sha256 else "weights and settings"
        )
        print(f"made for {arguments.model!r}: {known} agree")
    if arguments.log:
        from cedkv.api.folder import check_logged

        verdict = check_logged(stored, store(arguments))
        print(
            f"run {verdict.gates.run_id[:8]} logged it; its log says Gate A {verdict.gates.gate_a}, Gate B {verdict.gates.gate_b}"
        )
    return 0
