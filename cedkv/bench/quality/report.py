"""The tables of a benchmark of quality: a line for each method over all seeds, and what became of the targets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cedkv import ledger
from cedkv.bench import machine
from cedkv.bench.quality.options import METHODS
from cedkv.bench.quality.overhead import BARE, RIVAL_OF
from cedkv.bench.quality.result import Result, mean
from cedkv.bench.quality.verdict import PHASE3, Numbers, Target, targets
from cedkv.report.tables import jsonable, markdown_table

COLUMNS: Mapping[str, str] = {
    ledger.ON_GAIN: "ON gain",
    ledger.ON_GAIN_RECOVERED: "recovered",
    ledger.ON_LOGP_GAIN: "ON log-prob. gain",
    ledger.REL_KL_TO_TEACHER: "KL to teacher / base's",
    ledger.MEAN_STRESS: "OFF mean",
    ledger.P99_STRESS: "OFF p99",
    ledger.MAX_STRESS: "OFF max",
    ledger.P99_UPPER: "95 % bound",
}
"""Metrics that have a column, and its head."""
_GAINS = (ledger.ON_GAIN, ledger.ON_LOGP_GAIN)


@dataclass(frozen=True, slots=True)
class Line:
    """A method over all seeds for which it has tables."""

    method: str
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """What tables call it."""
        return METHODS[self.method]

    def values(self, metric: str) -> list[float]:
        """One metric of every seed."""
        return [result.metrics[metric] for result in self.results]

    @property
    def numbers(self) -> Numbers:
        """What the verdict is made of."""
        p99 = self.values(ledger.P99_STRESS)
        return Numbers(mean(self.values(ledger.ON_GAIN)), mean(p99), max(p99))


@dataclass(frozen=True, slots=True)
class Report:
    """All results of a configuration, and of every way to attach a memory its relative time per token, turn by turn."""

    config: str
    machine: dict[str, str | int | None]
    limit: float
    results: Sequence[Result]
    overhead: Mapping[str, Sequence[float]]

    @property
    def lines(self) -> list[Line]:
        """Methods that have tables, in the order of `METHODS`."""
        found = [
            Line(method, tuple(r for r in self.results if r.method == method and not r.absent))
            for method in METHODS
        ]
        return [line for line in found if line.results]

    @property
    def absent(self) -> dict[str, str]:
        """Methods that have no tables, and why."""
        return {r.method: r.absent for r in self.results if r.absent}

    def cost(self, method: str) -> float | None:
        """Median time per generated token with the memory over that without it, less 1."""
        own = [value for r in self.results if r.method == method for value in r.facts.get("overhead", ())]
        values = own or self.overhead.get(RIVAL_OF.get(method, ""), ())
        return statistics.median(values) - 1 if values else None

    @property
    def targets(self) -> list[Target]:
        """The verdict."""
        rows = {line.method: line.numbers for line in self.lines}
        return targets(rows, self.cost(PHASE3), self.limit)


def to_markdown(report: Report, figure: str | None) -> str:
    """Mean and range over seeds, a row for each method; the verdict; notes."""
    seeds = sorted({result.seed for result in report.results})
    lines = [
        "# cedkv bench quality",
        "",
        f"`{report.config}`, seeds {', '.join(map(str, seeds))} of data and training. {machine.line(report.machine)}.",
        "",
    ]
    lines += (
        [f"![ON gain against the p99 of the OFF drift, with the gate line]({figure})", ""] if figure else []
    )
    heads = ["", "seeds", *COLUMNS.values(), "bytes", "build s", "time per token"]
    lines += markdown_table(heads, [_cells(report, line) for line in report.lines])
    lines += [
        "",
        "Means over seeds with their range. OFF in nats: KL(student ‖ base), worst memory of every stress prompt.",
    ]
    lines += [
        "",
        "## Verdict",
        "",
        *markdown_table(("target", "measured", ""), _verdict(report)),
        "",
        "## Notes",
        "",
    ]
    return "\n".join([*lines, *_notes(report)]) + "\n"


def _cells(report: Report, line: Line) -> list[str]:
    cost = report.cost(line.method)
    return [
        line.name,
        str(len(line.results)),
        *(_ranged(line.values(metric), signed=metric in _GAINS) for metric in COLUMNS),
        f"{max(result.bytes for result in line.results):,}",
        f"{mean([result.seconds for result in line.results]):,.1f}",
        "" if cost is None else f"{cost:+.1%}",
    ]


def _ranged(values: Sequence[float], *, signed: bool) -> str:
    """The mean, with the range where there is one.

    >>> _ranged([0.9612, 0.9588], signed=True), _ranged([0.0], signed=False), _ranged([11.0, 13.5], signed=False)
    ('+0.960 (+0.959 to +0.961)', '0', '12.2 (11 to 13.5)')
    """
    shown = [_short(value, signed=signed) for value in (mean(values), min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _short(value: float, *, signed: bool) -> str:
    if signed:
        return f"{value:+.3f}"
    return f"{value:.3g}"


def _verdict(report: Report) -> list[tuple[str, str, str]]:
    return [
        (target.name, target.measured, "met" if target.met else "**missed**") for target in report.targets
    ]


def _notes(report: Report) -> list[str]:
    """What a reader has to know of each method, and every check."""
    found = []
    for line in report.lines:
        told = [f"seed {result.seed}: {note}" for result in line.results for note in result.notes]
        if len({result.notes for result in line.results}) == 1:
            told = list(line.results[0].notes)
        worst = [
            max(result.checks, key=lambda check: check.largest / check.tolerance)
            for result in line.results
            if result.checks
        ]
        if worst:
            check = max(worst, key=lambda check: check.largest / check.tolerance)
            sign = "≤" if check.holds else "> (**does not agree**)"
            told.append(
                f"checked against {check.against}, the worst {check.largest:.1e} {sign} {check.tolerance:.0e}"
            )
        if told:
            found.append(f"- {line.name}: {'; '.join(told)}")
    found += [f"- {METHODS[method]}: {why}" for method, why in report.absent.items()]
    if report.overhead:
        low, high = _quartiles(report.overhead[BARE])
        found.append(
            f"- time per token: medians of turns; the bare model's own turns lie between {low:+.1%} and {high:+.1%} (quartiles)"
        )
    return found + [f"- {note}" for note in FAIRNESS]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first - 1, third - 1


FAIRNESS = (
    "bytes: what is stored per document, the largest over documents; peers are rounded up to at least cedkv's",
    "build: wall seconds for all documents beyond what every method is given (model, data, the teacher's answers)",
    "trained peers: peft's start, Adam, Phase 3's steps, as many ON prompts of a document in a step as Phase 3 draws on average, the same teacher",
    "`+ OFF` adds the configuration's first λ times the CVaR of the KL to the base over as many OFF training prompts, half of them those that disturb the anchors' memory of that very document most",
    "learning rates: the lowest held-out loss of the variant on documents of another seed, not reported (of JSONL data: the first documents)",
    "attention matching: cedkv's layers and slots; reference queries are those that predict the answers of the ON training prompts (on another seed +1.00 ON, where the queries of all their positions gave +0.14)",
    "equal ON: an ON gain of at least Phase 3's less 0.05",
)


def to_json(report: Report) -> str:
    """Everything but the per-prompt tables, which lie beside it, seed by seed."""
    rows = []
    for result in report.results:
        row: dict[str, Any] = {"method": result.method, "seed": result.seed, "absent": result.absent or None}
        row |= {
            "metrics": result.metrics,
            "bytes": result.bytes,
            "seconds": result.seconds,
            "facts": dict(result.facts),
        }
        row |= {"notes": list(result.notes), "agrees": result.agrees}
        row["checks"] = [
            {"against": c.against, "largest": c.largest, "tolerance": c.tolerance} for c in result.checks
        ]
        rows.append(row)
    content = {
        "schema": 1,
        "config": report.config,
        "machine": report.machine,
        "limit": report.limit,
        "results": rows,
        "overhead": {name: list(values) for name, values in report.overhead.items()},
        "targets": [{"name": t.name, "measured": t.measured, "met": t.met} for t in report.targets],
    }
    return json.dumps(jsonable(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
