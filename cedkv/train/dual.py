"""The dual of a run: its rule from the configuration, and what its trace says at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cedkv import ledger
from cedkv.config.phase3 import Dual
from cedkv.core.dual import DualRule, cancelling_gain
from cedkv.core.oscillation import oscillation, tracking


def rule_of(dual: Dual, threshold: float) -> DualRule:
    """How λ_off moves by these settings, for a threshold in nats."""
    damping = cancelling_gain(dual.eta, dual.ema_beta) if dual.gain_p is None else dual.gain_p
    return DualRule(
        eta=dual.eta,
        ema_beta=dual.ema_beta,
        update_every=dual.update_every,
        lambda_min=dual.lambda_min,
        lambda_max=dual.lambda_max,
        delta_clip=dual.delta_clip,
        threshold=threshold,
        gain_p=damping if dual.controller == "pi" else 0.0,
        setpoint_margin=dual.setpoint_margin,
    )


def dual_metrics(trace: Sequence[Mapping[str, float]], rule: DualRule, start: float) -> dict[str, float]:
    """How λ_off moved from its `start`, over the whole run; `trace` holds a row for every update."""
    lambdas, p99s = [row["lambda_off"] for row in trace], [row["p99_raw"] for row in trace]
    found = oscillation(lambdas, p99s, threshold=rule.threshold, update_every=rule.update_every)
    return {
        ledger.DUAL_STD: found.std,
        ledger.DUAL_PEAK_TO_PEAK: found.peak_to_peak,
        ledger.DUAL_SETTLING_TICK: found.settling_tick,
        ledger.DUAL_SETTLING_SHARE: found.settling_tick / len(trace),
        ledger.DUAL_VIOLATION: found.violation,
        ledger.DUAL_TRACKING: tracking(
            lambdas,
            p99s,
            start=start,
            target=rule.threshold - rule.setpoint_margin,
            lambda_min=rule.lambda_min,
            lambda_max=rule.lambda_max,
        ),
    }
