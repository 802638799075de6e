"""The report of one run as Markdown. Every text that comes from the log is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cedkv import ledger
from cedkv.core.verdict import Verdict
from cedkv.report import escape, text
from cedkv.report.tables import markdown_table, shown

_PROMPT = 160  # characters of a prompt that are shown; the tables hold all of it


def to_markdown(report: Mapping[str, Any], verdict: Verdict) -> str:
    """The page of a run. ``report`` is what ``run_report`` made of the same run and verdict."""
    sections = (
        ("Verdict", text.to_markdown(verdict).splitlines()),
        ("OFF: drift on prompts the documents do not answer (nats)", _numbers(report["off"])),
        (f"Worst prompts: {report['worst']['count']} of {report['worst']['of']}", _worst(report["worst"])),
        ("ON: use of the documents", _numbers(report["on"])),
        ("Losses", _losses(report["losses"])),
        ("λ_off", _lambda(report["lambda_off_trace"])),
        ("How λ_off moved (last third of the updates)", _numbers(report["lambda_off_moved"])),
        ("Proxies against what was measured (last eval tick)", _numbers(report["proxies"])),
        ("Top-k schedule", _schedule(report["topk_schedule"])),
        ("Atom type mass", _atom_mass(report["atom_type_mass"])),
        ("Attention mass on the slots", _numbers(report["slot_mass"])),
        ("Constraint warnings", _warnings(report["constraint_warnings"])),
        ("Where the time went (seconds)", _numbers(report["seconds"])),
        ("Data", _pairs(report["data"])),
    )
    lines = [f"# {escape.markdown(str(report['run']['name']), 120)}", "", *_pairs(_heading(report["run"]))]
    for title, body in sections:
        lines += ["", f"## {title}", "", *(body or ["Not logged."])]
    return "\n".join(lines) + "\n"


def _heading(run: Mapping[str, Any]) -> dict[str, Any]:
    started = datetime.fromtimestamp(run["start_time_ms"] / 1000, tz=UTC)
    seconds = run["seconds"]
    return {
        "run": run["id"],
        "phase": run["phase"],
        "status": run["status"],
        "started": started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "took": None if seconds is None else f"{seconds:.0f} s",
        **{key: value for key, value in run.items() if key not in _HEADING_DONE and value is not None},
    }


_HEADING_DONE = frozenset({"id", "name", "phase", "status", "start_time_ms", "seconds"})


def _pairs(values: Mapping[str, Any]) -> list[str]:
    rows = ((f"`{name}`", escape.markdown(_cell(value))) for name, value in values.items())
    return markdown_table(("", ""), rows)


def _numbers(values: Mapping[str, Any]) -> list[str]:
    return _pairs(values) if any(value is not None for value in values.values()) else []


def _worst(worst: Mapping[str, Any]) -> list[str]:
    if not worst["prompts"]:
        return []
    families = ", ".join(f"{escape.markdown(name, 40)} {count}" for name, count in worst["families"].items())
    header = ("#", "KL (nats)", "prompt", "family", "state", "base says", "student says")
    rows = (
        (
            str(place),
            _cell(row["stress_delta"]),
            escape.markdown(row["prompt"], _PROMPT),
            *(escape.markdown(row[key], 40) for key in ("family", "state", "base_top", "student_top")),
        )
        for place, row in enumerate(worst["prompts"], start=1)
    )
    return [f"By family: {families}.", "", *markdown_table(header, rows)]


def _losses(losses: Sequence[Mapping[str, Any]]) -> list[str]:
    if all(loss["last"] is None and loss["first"] is None for loss in losses):
        return []
    keys = ("first", "lowest", "last")
    rows = ((f"`{loss['name']}`", *(_cell(loss[key]) for key in keys)) for loss in losses)
    return markdown_table(("loss", *keys), rows)


def _lambda(trace: Mapping[str, Any]) -> list[str]:
    if not trace["rows"]:
        return []
    keys = tuple(trace["rows"][0])
    said = f"{trace['ticks']} updates, λ between {_cell(trace['lowest'])} and {_cell(trace['highest'])}"
    more = f"; every row is in `{ledger.LAMBDA_TRACE}`" if trace["ticks"] > len(trace["rows"]) else ""
    rows = ([escape.markdown(_cell(row[key])) for key in keys] for row in trace["rows"])
    return [f"{said}{more}.", "", *markdown_table(keys, rows)]


def _schedule(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    stages = [f"{_cell(row.get('topk'))} from step {_cell(row.get('step'))}" for row in rows]
    return [escape.markdown(", ".join(stages)) + "."] if stages else []


def _atom_mass(mass: Mapping[str, Any]) -> list[str]:
    known = [(kind, row) for kind, row in mass["types"].items() if row["last"] is not None]
    if not known:
        return []
    rows = ((kind, _cell(row["first"]), _cell(row["last"])) for kind, row in known)
    peak, cap = _cell(mass["delimiter_slot_max"]), _cell(mass["delimiter_cap"])
    said = f"Largest delimiter mass of a slot {peak}, cap {cap}."
    if mass["near_cap"]:
        said += " **Warning:** delimiter mass gathers at the cap; see whether a lower cap keeps ON."
    return [*markdown_table(("type", "first", "last"), rows), "", said]


def _warnings(warnings: Mapping[str, Any]) -> list[str]:
    if not warnings["ticks"]:
        return []
    triggered = f"{warnings['triggered']} of {warnings['ticks']} ticks triggered"
    return [f"{triggered}; {warnings['longest_row']} ticks in a row over the limit at most."]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        return escape.plain(str(value), 80)
    return escape.plain(value, 80) if isinstance(value, str) else shown(value)
