"""Commands that compute again what a run logged: its reproduction, and its certification."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from cedkv.cli.judge import store, whole_id

if TYPE_CHECKING:
    from cedkv.train.reproduction import Repeat

_SHOWN = 12


def reproduce(arguments: argparse.Namespace) -> int:
    """Run a configuration again and compare; status 10 where the gate results differ."""
    from cedkv.release.exit_codes import GATE_FAILED, PASS
    from cedkv.train.reproduction import reproduce as run_again

    repeat = run_again(whole_id(arguments, arguments.run_id), store(arguments), _say)
    print(_compared(repeat))
    return PASS if repeat.same_gates else GATE_FAILED


def _compared(repeat: Repeat) -> str:
    lines = [
        f"run {report.run_id}  Gate A {report.gate_a}  Gate B {report.gate_b}"
        for report in (repeat.first, repeat.second)
    ]
    lines.append(f"reproduced  {'yes' if repeat.same_gates else 'no'}")
    if not repeat.differences:
        lines.append("every logged number is equal, bit for bit (but perf/...)")
    for found in repeat.differences[:_SHOWN]:
        far = "" if found.largest is None else f", by {found.largest:.3g} at most"
        lines.append(f"  {found.name}: {found.differ} of {found.of} values differ{far}")
    more = len(repeat.differences) - _SHOWN
    lines += [f"  ... and {more} more"] if more > 0 else []
    if repeat.differences and not repeat.same_environment:
        lines.append("  the two ran in different environments (versions, machine or threads)")
    if not repeat.same_code:
        lines.append("note: the two did not run the same clean commit")
    return "\n".join(lines)


def certify(arguments: argparse.Namespace) -> int:
    """Open the sealed set for a run; status 0 certified, 10 not, 11 inconclusive, 12 no attempt left."""
    from cedkv.release.exit_codes import BUDGET_SPENT, of_status
    from cedkv.report import text
    from cedkv.report.tables import jsonable
    from cedkv.train.certification import BudgetSpentError
    from cedkv.train.certification import certify as open_sealed_set

    try:
        verdict = open_sealed_set(whole_id(arguments, arguments.run_id), store(arguments), _say)
    except BudgetSpentError as spent:
        print(f"cedkv: {spent}", file=sys.stderr)
        return BUDGET_SPENT
    found = verdict.certification
    assert found is not None, "an opening that ended has logged a certificate"
    as_json = arguments.format == "json"
    print(
        json.dumps(jsonable(asdict(found)), indent=2) if as_json else f"sealed set  {text.certified(found)}"
    )
    return of_status(found.status)


def _say(message: str) -> None:
    print(f"cedkv: {message}", file=sys.stderr)
