"""Is what the log holds fit to be judged? Checks that can end in ``pass`` or ``inconclusive``, never in ``fail``.

A measurement that rests on evidence which does not pass is not judged at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any

from cedkv import ledger
from cedkv.core.hashing import content_hash
from cedkv.core.verdict import Check, Group, Status
from cedkv.tracking.record import RunRecord

STRESS_PATH = "phase3.eval.off_fixed_stress"
_NOT_LOGGED = "not logged"


def run_evidence(record: RunRecord) -> tuple[Check, ...]:
    """The run ended well, still exists, and speaks the version of the log that this evaluator knows."""
    schema = record.tags.get(ledger.TAG_SCHEMA)
    spec_schema = lookup(record.data_spec, "schema")
    agreed = schema if spec_schema is None or str(spec_schema) == schema else f"{schema} and {spec_schema}"
    return (
        _same("run", "run_status", record.status, "FINISHED", "only a run that finished can be judged"),
        _same(
            "run", "run_lifecycle", record.lifecycle, "active", "the run was deleted; restore it to judge it"
        ),
        _same(
            "run",
            "log_schema",
            agreed,
            ledger.SCHEMA_VERSION,
            "written by another version of cedkv; judge with that",
        ),
        _phase(record.tags.get(ledger.TAG_PHASE)),
        _one_run(record.tags.get(ledger.TAG_CHANGED)),
    )


def on_evidence(record: RunRecord) -> tuple[Check, ...]:
    """The ON table holds exactly the ON evaluation set that the run says it used."""
    return (
        _content(
            "A",
            "on_eval_sha256",
            _hash(record.on_table, ("id", "document", "prompt", "answer"), split="eval"),
            (lookup(record.data_spec, "on_eval.sha256"), record.tags.get(ledger.TAG_HASH_ON_EVAL)),
            len(record.on_table) if record.on_table is not None else None,
        ),
    )


def stress_evidence(record: RunRecord) -> tuple[Check, ...]:
    """The stress table holds the fixed stress set that was configured, and p99 was measured on nothing else."""
    source = record.tags.get(ledger.TAG_SOURCE_P99)
    rows = record.stress_table
    return (
        _same(
            "B", "stress_source", source, ledger.SOURCE_FIXED, "p99 was not measured on the fixed stress set"
        ),
        _stress_size(record),
        *(_as_configured(record, key) for key in ("seed", "sampling", "definition")),
        _content(
            "B",
            "stress_sha256",
            _hash(rows, ("id", "prompt", "family")),
            (lookup(record.data_spec, "stress.sha256"), record.tags.get(ledger.TAG_HASH_STRESS)),
            len(rows) if rows is not None else None,
        ),
    )


def lookup(tree: Mapping[str, Any] | None, path: str) -> Any:
    """The value at a dotted path, or None where any part of it is missing."""
    found: Any = tree
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def number(tree: Mapping[str, Any] | None, path: str) -> float | None:
    """The finite number at a dotted path, or None. ``true`` is not a number here."""
    found = lookup(tree, path)
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if is_number else None


def unmet(checks: Iterable[Check]) -> str:
    """Why a measurement cannot be judged on this evidence; empty when it can."""
    names = [check.name for check in checks if check.status is not Status.PASS]
    return f"not judged: {', '.join(names)} did not pass" if names else ""


def _phase(phase: str | None) -> Check:
    known = phase in (ledger.PHASE_BASELINE, ledger.PHASE_TRAINED)
    reason = "" if known else f"tag {ledger.TAG_PHASE} is {phase!r}; a run of phase 2 or 3 can be judged"
    return Check("run", "phase", phase, "=", "2 or 3", None, _pass_if(known), reason)


def _one_run(changed: str | None) -> Check:
    """A run that was resumed with other settings, code or data is no run of what its log says it was."""
    try:
        names = {} if changed is None else json.loads(changed)
        wrong = sorted(set(names) - ledger.CHANGES_NO_NUMBER)
    except (ValueError, TypeError):  # clipped, or edited
        wrong = [str(changed)]
    reason = f"it was resumed with changes ({', '.join(wrong)}): start a run of its own" if wrong else ""
    return Check(
        "run", "changed_on_the_way", ", ".join(wrong) or None, "=", None, None, _pass_if(not wrong), reason
    )


def _stress_size(record: RunRecord) -> Check:
    """Counted from the table: distinct prompts, held against the configuration and the data specification."""
    rows = record.stress_table
    distinct = None if rows is None else len({row.prompt for row in rows})
    limit = lookup(record.config, f"{STRESS_PATH}.size")
    counted = {
        "rows in the table": None if rows is None else len(rows),
        "in data/spec.json": lookup(record.data_spec, "stress.size"),
        "configured": limit,
    }
    wrong = [
        f"{_shown(value)} {where}" for where, value in counted.items() if value is None or value != distinct
    ]
    reason = f"{_shown(distinct)} distinct prompts, but {', '.join(wrong)}" if wrong else ""
    return Check(
        "B", "stress_size", distinct, "=", _number_or_text(limit), distinct, _pass_if(not wrong), reason
    )


def _as_configured(record: RunRecord, key: str) -> Check:
    used = lookup(record.data_spec, f"stress.{key}")
    configured = lookup(record.config, f"{STRESS_PATH}.{key}")
    same = used is not None and used == configured
    reason = "" if same else f"the run used {_shown(used)}, its configuration says {_shown(configured)}"
    return Check(
        "B",
        f"stress_{key}",
        _number_or_text(used),
        "=",
        _number_or_text(configured),
        None,
        _pass_if(same),
        reason,
    )


def _content(group: Group, name: str, found: str | None, logged: tuple[Any, Any], n: int | None) -> Check:
    """The hash of the table's own prompts against the two places that state it: data/spec.json and the tag."""
    spec, tag = logged
    same = found is not None and found == spec == tag
    reason = ""
    if found is None:
        reason = "the table is missing or its prompts cannot be hashed"
    elif not same:
        places = ((ledger.DATA_SPEC, spec), ("the tag", tag))
        reason = "; ".join(f"{where} says {_shown(value)}" for where, value in places if value != found)
        reason = f"the table's prompts are others than the run used: {reason}"
    return Check(group, name, found, "=", _number_or_text(spec), n, _pass_if(same), reason)


def _hash(rows: Iterable[Any] | None, fields: tuple[str, ...], **constant: str) -> str | None:
    """Hash of what the data says of each prompt: these fields of its row, and what is the same for all."""
    if rows is None:
        return None
    try:
        return _content_hash(tuple(map(attrgetter(*fields), rows)), fields, tuple(constant.items()))
    except ValueError:  # text that is not Unicode, e.g. a lone surrogate
        return None


# The runs of an experiment share their prompts, and comparing those with the last ones is faster than hashing again.
@lru_cache(maxsize=8)
def _content_hash(
    prompts: tuple[tuple[str, ...], ...], fields: tuple[str, ...], constant: tuple[tuple[str, str], ...]
) -> str:
    return content_hash({**dict(zip(fields, prompt, strict=True)), **dict(constant)} for prompt in prompts)


def _same(group: Group, name: str, value: str | None, wanted: str, rule: str) -> Check:
    reason = "" if value == wanted else f"{_shown(value)}: {rule}"
    return Check(group, name, value, "=", wanted, None, _pass_if(value == wanted), reason)


def _pass_if(met: bool) -> Status:
    return Status.PASS if met else Status.INCONCLUSIVE


def _shown(value: Any) -> str:
    return _NOT_LOGGED if value is None else str(value)


def _number_or_text(value: Any) -> float | str | None:
    is_plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return value if is_plain else str(value)
