"""Rules between keys. Each breach is reported with the key, its value, the rule and the remedy.

What a single key may be stands at the key; here is what only holds between keys, the sources of the design contract
(section 4) and of strictness: such settings are refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cedkv.config.scope import surely_outside
from cedkv.ledger import DELIMITER, SOURCE_FIXED

if TYPE_CHECKING:
    from cedkv.config.phase3 import Phase3
    from cedkv.config.schema import Config


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: where, what stands there, and what should."""

    key: str
    value: Any
    message: str


class BrokenRulesError(ValueError):
    """Raised inside validation; carries every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{p.key}: {p.message}" for p in problems))
        self.problems = problems


def broken_rules(config: Config) -> list[Problem]:
    """Every rule between keys that ``config`` breaks."""
    p = config.phase3
    checks = (_strict, _sources, _scopes, _candidates, _shares, _schedule, _dual, _controller, _sizes)
    return [Problem(f"phase3.{key}", value, message) for check in checks for key, value, message in check(p)]


_OVERRIDE = "debug_allow_nonfixed_constraint_sources"
_Found = Iterator[tuple[str, Any, str]]


def _strict(p: Phase3) -> _Found:
    if p.runtime.strict_hf and p.loss.source != "hf":
        yield (
            "loss.source",
            p.loss.source,
            "trains on proxies, and runtime.strict_hf wants every number from a real forward pass; use hf, or leave strict_hf",
        )
    if p.loss.source != "hf" and p.loss.off.train_source != "hard_pool":
        yield (
            "loss.source",
            p.loss.source,
            f"has proxies of OFF training prompts only, not of {p.loss.off.train_source}; use hf, or train on hard_pool",
        )


def _sources(p: Phase3) -> _Found:
    off, dual, runtime = p.loss.off, p.train.lambda_off.dual, p.runtime
    constraints = (
        ("loss.off.constraint_source", off.constraint_source),
        ("train.lambda_off.dual.metric_source", dual.metric_source),
    )
    for key, source in constraints:
        if source == SOURCE_FIXED:
            continue
        if runtime.policy_mode == "prod":
            yield key, source, f"policy_mode prod reads constraints from {SOURCE_FIXED} only; use that source"
        elif not runtime.debug_allow_nonfixed_constraint_sources:
            yield (
                key,
                source,
                f"also needs runtime.{_OVERRIDE}: true in debug; set that, or use {SOURCE_FIXED}",
            )
    if off.train_source != "hard_pool" and runtime.policy_mode == "prod":
        yield (
            "loss.off.train_source",
            off.train_source,
            "policy_mode prod trains on the hard pool only, or the run would learn what it is judged by; use hard_pool",
        )


def _scopes(p: Phase3) -> _Found:
    scope = p.layer_scope
    if surely_outside(scope.mixture, scope.injection):
        yield (
            "layer_scope.mixture",
            scope.mixture,
            f"mixes layers outside layer_scope.injection ({scope.injection}); widen injection or narrow mixture",
        )


def _candidates(p: Phase3) -> _Found:
    types = p.candidate.atom_types
    if len(set(types)) != len(types):
        yield "candidate.atom_types", types, "names a type twice; name each once"
    if set(types) == {DELIMITER}:
        yield "candidate.atom_types", types, "every slot needs a candidate that is no delimiter; add a type"


_FINER = ("shared", "layer", "head")


def _shares(p: Phase3) -> _Found:
    mixture, anchor = p.mix.share, p.mix.k_anchor.share
    if _FINER.index(anchor) > _FINER.index(mixture):
        yield (
            "mix.k_anchor.share",
            anchor,
            f"gives each {anchor} candidates of its own, which one mixture cannot weigh (mix.share: {mixture}); set mix.share to {anchor}",
        )


def _schedule(p: Phase3) -> _Found:
    schedule, milestones, pool = p.train.topk_schedule, p.train.topk_milestones, p.candidate.pool_size
    if len(schedule) != len(milestones):
        yield (
            "train.topk_schedule",
            schedule,
            f"has {len(schedule)} stages, topk_milestones has {len(milestones)}; give one milestone per stage",
        )
    if any(later > earlier for earlier, later in pairwise(schedule)):
        yield "train.topk_schedule", schedule, "grows; top-k may only shrink or stay: sort it downwards"
    if max(schedule) > pool:
        yield (
            "train.topk_schedule",
            schedule,
            f"exceeds candidate.pool_size ({pool}); lower the stage or raise pool_size",
        )
    if milestones[0] != 0:
        yield "train.topk_milestones", milestones, "does not start at 0; the first stage begins with the run"
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        yield "train.topk_milestones", milestones, "does not rise strictly; sort it and drop repeats"


def _dual(p: Phase3) -> _Found:
    dual, start = p.train.lambda_off.dual, p.loss.lambda_off
    if dual.lambda_min > dual.lambda_max:
        yield (
            "train.lambda_off.dual.lambda_min",
            dual.lambda_min,
            f"exceeds lambda_max ({dual.lambda_max}); swap the two",
        )
    elif not dual.lambda_min <= start <= dual.lambda_max:
        yield (
            "loss.lambda_off",
            start,
            f"starts outside the dual's range [{dual.lambda_min}, {dual.lambda_max}]; start inside or widen it",
        )


def _controller(p: Phase3) -> _Found:
    dual, limit = p.train.lambda_off.dual, p.thresholds.off_delta_p99_max
    if dual.setpoint_margin >= limit:
        yield (
            "train.lambda_off.dual.setpoint_margin",
            dual.setpoint_margin,
            f"reaches thresholds.off_delta_p99_max ({limit:g}), and no p99 is negative; give less than that",
        )
    if dual.gain_p is not None and dual.controller == "integral":
        yield (
            "train.lambda_off.dual.gain_p",
            dual.gain_p,
            "belongs to controller pi and would be ignored; set controller: pi, or leave it out",
        )


def _sizes(p: Phase3) -> _Found:
    pool, prompts = p.loss.off.hard_pool_size, p.eval.off_samples
    if pool > prompts:
        yield (
            "loss.off.hard_pool_size",
            pool,
            f"exceeds eval.off_samples ({prompts}); the pool is mined from those prompts: lower it",
        )
    source = pool if p.loss.off.train_source == "hard_pool" else p.eval.off_fixed_stress.size
    if p.train.off_batch > source:
        yield (
            "train.off_batch",
            p.train.off_batch,
            f"exceeds the {source} prompts of {p.loss.off.train_source}; lower it or enlarge the source",
        )
