"""Certification: what one opening of the sealed set proves about the rate of prompts that drift.

With confidence ``1 - delta / max_attempts`` at most 1 % of such prompts drift by more than tau. Every opening of an
experiment spends its share of delta, so that over all of them the chance of a false certificate stays below delta
(Bonferroni). "Such prompts" are those the sealed set is a sample of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cedkv import ledger
from cedkv.core import stats
from cedkv.core.verdict import Certification, Status
from cedkv.release.evidence import lookup, number
from cedkv.tracking.record import RunRecord

MAX_RATE = 0.01
"""The rate a certificate speaks of: at most one prompt in a hundred."""

DELTA_PATH = "phase3.certification.delta"
ATTEMPTS_PATH = "phase3.certification.max_attempts"
TAU_PATH = "phase3.thresholds.off_delta_p99_max"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Attempt:
    """One opening of the sealed set, as the experiment's ledger remembers it; it counts however it ended."""

    id: str
    run_id: str
    started_ms: int
    share: float  # of the error probability

    @staticmethod
    def read(attempt_id: str, entry: Mapping[str, Any]) -> Attempt:
        """An entry of the ledger. A damaged one counts as the first attempt, which spent everything."""
        share, started = number(entry, "share"), number(entry, "started_ms")
        if share is None or started is None:
            return Attempt(attempt_id, "", 0, 1.0)
        return Attempt(attempt_id, str(entry.get("run_id")), int(started), share)

    @property
    def order(self) -> tuple[int, str]:
        """Attempts are counted in this order."""
        return self.started_ms, self.id


def is_affordable(share: float, delta: float, attempts: Iterable[Attempt]) -> bool:
    """Whether ``delta`` covers one more attempt of ``share`` beside those already made."""
    return math.fsum([share, *(attempt.share for attempt in attempts)]) <= delta + _ROUNDING


def judge_certificate(record: RunRecord, attempts: Iterable[Attempt]) -> Certification | None:
    """What the run's certificate proves, recomputed from its per-prompt values; None where it has none.

    Args:
        record: the run; ``record.certificate`` is what the opening logged.
        attempts: the experiment's ledger.
    """
    logged = record.certificate
    if logged is None:
        return None
    deltas = [float(value) for value in logged.get("deltas", ()) if isinstance(value, int | float)]
    tau, delta, allowed = (number(record.config, path) for path in (TAU_PATH, DELTA_PATH, ATTEMPTS_PATH))
    attempt = _attempt(logged)
    made = sorted(attempts, key=lambda entry: entry.order)
    reason = _gap(record, logged, deltas) or _unpaid(attempt, delta, allowed, made)
    if reason or tau is None or delta is None or allowed is None:
        return replace(_UNPROVEN, reason=reason, n=len(deltas))
    confidence = 1.0 - delta / allowed
    exceeded = stats.exceedances(deltas, tau)
    rate = stats.clopper_pearson_upper(exceeded, len(deltas), confidence)
    met = rate <= MAX_RATE
    return Certification(
        status=Status.PASS if met else Status.FAIL,
        reason="" if met else f"the rate may be {rate:.4g}, over {MAX_RATE:g}",
        n=len(deltas),
        exceedances=exceeded,
        tau=tau,
        confidence=confidence,
        max_rate=MAX_RATE,
        upper_rate=rate,
        p99_upper=stats.upper_bound(deltas, 1.0 - MAX_RATE, confidence),
        set_sha256=record.tags[ledger.TAG_HASH_SEALED],
        attempt=[entry.id for entry in made].index(attempt) + 1,
        max_attempts=int(allowed),
    )


_UNPROVEN = Certification(
    status=Status.INCONCLUSIVE,
    reason="",
    n=0,
    exceedances=0,
    tau=math.nan,
    confidence=math.nan,
    max_rate=MAX_RATE,
    upper_rate=math.nan,
    p99_upper=math.nan,
    set_sha256="",
    attempt=0,
    max_attempts=0,
)


def _attempt(logged: Mapping[str, Any]) -> str:
    return str(logged.get("attempt_id"))[:80]


def _gap(record: RunRecord, logged: Mapping[str, Any], deltas: list[float]) -> str:
    """Why the certificate proves nothing about this run; empty when it does."""
    stated = {
        "run id": (logged.get("run_id"), record.run_id),
        "sealed set": (lookup(logged, "set.sha256"), record.tags.get(ledger.TAG_HASH_SEALED)),
        "size of the sealed set": (len(deltas), lookup(record.data_spec, "sealed.count")),
        "model": (logged.get("model_fingerprint"), record.tags.get(ledger.TAG_MODEL)),
        "tau": (number(logged, "tau"), number(record.config, TAU_PATH)),
        "delta": (number(logged, "delta"), number(record.config, DELTA_PATH)),
        "max_attempts": (number(logged, "max_attempts"), number(record.config, ATTEMPTS_PATH)),
    }
    for name, (found, wanted) in stated.items():
        if wanted is None or found != wanted:
            return f"the certificate's {name} is {found}, the run's is {wanted}"
    if record.status != "FINISHED":
        return f"the run is {record.status}; only the memory of a finished run can be certified"
    return "" if all(map(math.isfinite, deltas)) else "a value of the certificate is not finite"


def _unpaid(attempt: str, delta: float | None, allowed: float | None, made: list[Attempt]) -> str:
    """Why the ledger does not cover this attempt; empty when it does."""
    mine = next((entry for entry in made if entry.id == attempt), None)
    if mine is None:
        return f"attempt {attempt} is not in the experiment's ledger"
    if delta is None or allowed is None or not math.isclose(mine.share, delta / allowed, rel_tol=_ROUNDING):
        return (
            f"the ledger holds a share of {mine.share:g} for the attempt, which is not delta / max_attempts"
        )
    covered = is_affordable(mine.share, delta, [entry for entry in made if entry.order < mine.order])
    return "" if covered else "the attempts before it had spent the error probability"
