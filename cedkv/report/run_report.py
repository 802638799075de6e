"""The report of one run: everything a reviewer asks for, as plain data, from the log and the verdict.

``run_page`` turns it into Markdown; as JSON it is written with ``to_json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cedkv import ledger
from cedkv.core.verdict import GateReport, Verdict
from cedkv.report.tables import jsonable
from cedkv.report.text import as_dict
from cedkv.report.traces import Row, Traces, changes, finite, rows_of, sparse
from cedkv.tracking.record import RunRecord

LAMBDA_ROWS = 15
"""Rows of the lambda trace in a report; the artifact holds all."""

_LOSSES = (ledger.LOSS, ledger.LOSS_ON, ledger.LOSS_OFF, ledger.LOSS_STR)
_OFF = (ledger.P99_STRESS, ledger.P99_UPPER, ledger.P99_TYPICAL, ledger.MEAN_STRESS, ledger.MAX_STRESS)
_ON = (
    ledger.ON_ACC_BASE,
    ledger.ON_ACC_STUDENT,
    ledger.ON_ACC_TEACHER,
    ledger.ON_GAIN,
    ledger.ON_GAIN_RECOVERED,
    ledger.ON_LOGP_GAIN,
    ledger.DELTA_ON_MEAN,
    ledger.REL_KL_TO_TEACHER,
    ledger.NULL_INJECTION_MAX_KL,
    ledger.TEACHER_CACHE_MAX_KL,
)
_NEAR_CAP = 0.95  # share of the delimiter cap from which a report speaks up

_DUAL = (
    ledger.DUAL_STD,
    ledger.DUAL_PEAK_TO_PEAK,
    ledger.DUAL_SETTLING_TICK,
    ledger.DUAL_VIOLATION,
    ledger.DUAL_TRACKING,
)
_PROXIES = (
    ledger.PROXY_OFF_SPEARMAN,
    ledger.PROXY_OFF_PEARSON,
    ledger.PROXY_STRESS_SPEARMAN,
    ledger.PROXY_P99,
    ledger.PROXY_ON_SPEARMAN,
    ledger.PROXY_ON_PEARSON,
    ledger.PROXY_ON_ANSWER_SPEARMAN,
    ledger.PROXY_RECALL,
)


def run_report(
    record: RunRecord,
    verdict: Verdict,
    traces: Traces | None = None,
) -> dict[str, Any]:
    """The report as plain, JSON-ready data.

    ``traces`` maps artifact names to rows, see ``cedkv.report.traces``. What a run did not log is None or empty: a run
    of Phase 2 has no losses and no lambda.
    """
    found: Traces = traces or {}
    content = {
        "schema": ledger.SCHEMA_VERSION,
        "run": _run(record),
        "verdict": as_dict(verdict),
        "off": _metrics(record, _OFF),
        "on": _metrics(record, _ON),
        "losses": [_loss(record, name, rows_of(found, ledger.LOSS_CURVE)) for name in _LOSSES],
        "lambda_off_trace": _lambda(rows_of(found, ledger.LAMBDA_TRACE)),
        "lambda_off_moved": _metrics(record, _DUAL),
        "proxies": _metrics(record, _PROXIES),
        "topk_schedule": changes(rows_of(found, ledger.TOPK_TRACE), ledger.TOPK),
        "atom_type_mass": _atom_mass(record, rows_of(found, ledger.ATOM_TYPE_MASS)),
        "slot_mass": _metrics(record, (ledger.SLOT_MASS_ON, ledger.SLOT_MASS_OFF)),
        "constraint_warnings": _warnings(rows_of(found, ledger.WARN_TRACE)),
        "worst": _worst(verdict.gates, record),
        "seconds": _seconds(record),
        "data": _data(record),
    }
    cleaned: dict[str, Any] = jsonable(content)
    return cleaned


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON, ASCII only."""
    return json.dumps(report, indent=2) + "\n"


def _worst(report: GateReport, record: RunRecord) -> dict[str, Any]:
    """The stress prompts that drift most, hardest first, and their families counted."""
    return {
        "count": len(report.worst),
        "of": len(record.stress_table or ()),
        "families": dict(Counter(prompt.family for prompt in report.worst).most_common()),
        "prompts": [asdict(prompt) for prompt in report.worst],
    }


def _run(record: RunRecord) -> dict[str, Any]:
    ended = record.end_time_ms
    return {
        "id": record.run_id,
        "name": record.name,
        "experiment_id": record.experiment_id,
        "status": record.status,
        "phase": record.tags.get(ledger.TAG_PHASE),
        "start_time_ms": record.start_time_ms,
        "seconds": None if ended is None else (ended - record.start_time_ms) / 1000,
        **{
            name: record.tags.get(tag)
            for name, tag in (
                ("config_hash", ledger.TAG_CONFIG_HASH),
                ("model_fingerprint", ledger.TAG_MODEL),
                ("git_commit", ledger.TAG_GIT_COMMIT),
                ("git_dirty", ledger.TAG_GIT_DIRTY),
                ("world_size", ledger.TAG_WORLD_SIZE),
                ("kept", ledger.TAG_KEPT),
                ("loss_source", ledger.TAG_SOURCE_LOSS),
                ("policy_mode", ledger.TAG_POLICY_MODE),
                ("strict_hf", ledger.TAG_STRICT_HF),
                ("environment", ledger.TAG_ENVIRONMENT),
                ("error", ledger.TAG_ERROR),
            )
        },
    }


def _metrics(record: RunRecord, names: Iterable[str]) -> dict[str, float | None]:
    return {name: record.metrics.get(name) for name in names}


def _seconds(record: RunRecord) -> dict[str, float]:
    """Wall time by part and in total, as far as the run logged it."""
    names = (*map(ledger.seconds, ledger.PARTS), ledger.SECONDS_TOTAL)
    return {name: record.metrics[name] for name in names if name in record.metrics}


def _loss(record: RunRecord, name: str, curve: Sequence[Row]) -> dict[str, Any]:
    """First, lowest and last value of one loss: from the curve, the last from the metrics where they hold it."""
    values = [value for value in (finite(row.get(name)) for row in curve) if value is not None]
    return {
        "name": name,
        "first": values[0] if values else None,
        "lowest": min(values, default=None),
        "last": record.metrics.get(name, values[-1] if values else None),
    }


def _lambda(rows: Sequence[Row]) -> dict[str, Any]:
    values = [value for value in (finite(row.get(ledger.LAMBDA_OFF)) for row in rows) if value is not None]
    keys = ("tick", "step", ledger.P99_RAW, ledger.P99_EMA, "delta", ledger.LAMBDA_OFF)
    return {
        "ticks": len(rows),
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "rows": [{key: row.get(key) for key in keys} for row in sparse(rows, LAMBDA_ROWS)],
    }


def _atom_mass(record: RunRecord, rows: Sequence[Row]) -> dict[str, Any]:
    """Mass per type at the start and at the end, the delimiter cap, and whether a slot comes close to it."""
    cap = finite(_at(record.config, "phase3", "candidate", "delimiter", "mass_cap"))
    first, last = (rows[0], rows[-1]) if rows else ({}, {})
    peak = finite(record.metrics.get(ledger.DELIMITER_SLOT_MAX, last.get("delimiter_slot_max")))
    types = {
        kind: {
            "first": finite(first.get(kind)),
            "last": record.metrics.get(ledger.atom_mass(kind), finite(last.get(kind))),
        }
        for kind in ledger.ATOM_TYPES
    }
    near = cap is not None and peak is not None and peak >= _NEAR_CAP * cap
    return {"types": types, "delimiter_cap": cap, "delimiter_slot_max": peak, "near_cap": near}


def _warnings(rows: Sequence[Row]) -> dict[str, Any]:
    triggered = [row for row in rows if row.get("triggered") in (True, 1)]
    longest = max(
        (int(value) for value in (finite(row.get("consecutive")) for row in rows) if value), default=0
    )
    return {
        "ticks": len(rows),
        "longest_row": longest,
        "triggered": len(triggered),
        "rows": sparse(triggered, 5),
    }


def _data(record: RunRecord) -> dict[str, Any]:
    tags = {
        "documents": ledger.TAG_HASH_DOCUMENTS,
        "on_train": ledger.TAG_HASH_ON_TRAIN,
        "on_eval": ledger.TAG_HASH_ON_EVAL,
        "off_train": ledger.TAG_HASH_OFF_TRAIN,
        "stress": ledger.TAG_HASH_STRESS,
        "sealed": ledger.TAG_HASH_SEALED,
    }
    return {name: record.tags.get(tag) for name, tag in tags.items()}


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
