"""The loop around the step: minibatches, hard pool, eval ticks, dual, constraint warnings.

Every stream of random numbers has a generator of its own, so that a change in one never moves another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cedkv import ledger
from cedkv.config.phase3 import Train
from cedkv.core import stats
from cedkv.core.dual import DualState
from cedkv.core.schedule import topk_at
from cedkv.core.warn import ConstraintWarn, WarnState
from cedkv.evaluate import StressResult, stress
from cedkv.injection.trunk import Part
from cedkv.memory.bank import MemoryBank
from cedkv.train.clock import Clock
from cedkv.train.delimiter_watch import DelimiterWatch
from cedkv.train.dual import rule_of
from cedkv.train.experiment import Experiment
from cedkv.train.finite import FiniteWatch
from cedkv.train.hard_pool import HardPool, mine
from cedkv.train.keep import Keeper, fixed_on_loss
from cedkv.train.loss_source import LossSource, Proxies
from cedkv.train.outcome import Outcome, Traces
from cedkv.train.proxy import Scale
from cedkv.train.step import Terms, Weights, loss_terms
from cedkv.train.system import SystemMetrics
from cedkv.train.trial import Watch, ignore


class Log(Protocol):
    """What the loop needs of a run that is open for writing."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log `metrics` at `step`."""


class ConstraintViolatedError(RuntimeError):
    """A confirmed violation with `constraint_warn.action: abort`. The run ends FAILED."""


class Trainer:
    """Phase 3 on a prepared experiment; `run` is the whole of it. Phase 2 takes its prompts and its clock only."""

    def __init__(
        self,
        experiment: Experiment,
        log: Log,
        *,
        warn: Callable[[str], None],
        clock: Clock | None = None,
        watch: Watch = ignore,
    ) -> None:
        self.experiment, self.log, self.warn, self.watch = experiment, log, warn, watch
        self.team = experiment.team
        self.phase3 = experiment.config.phase3
        self.model, self.bank = experiment.model, experiment.bank
        self.off, self.stress_prompts = experiment.off, experiment.stress
        train, dual = self.phase3.train, self.phase3.train.lambda_off.dual
        limit = self.phase3.thresholds.off_delta_p99_max
        self.rule = rule_of(dual, limit)
        self.dual = DualState(self.phase3.loss.lambda_off)
        constraint = train.constraint_warn
        self.constraint = ConstraintWarn(limit, constraint.margin, constraint.patience_eval_ticks)
        self.warning = WarnState()
        self.traces, self.clock = Traces(), clock or Clock()
        self.optimiser = torch.optim.Adam(_groups(self.bank, train))
        self.on_order = torch.Generator().manual_seed(train.seed)
        self.off_order = torch.Generator().manual_seed(train.seed + 1)
        self.pool = HardPool((), ())
        self.proxies, self.scale = Proxies(experiment), Scale()
        self.source = LossSource(self.phase3.loss.source, self.phase3.loss.proxy_min_spearman)
        self.ticks = 0
        self.finite = FiniteWatch(train.nonfinite_patience, warn)
        self.keeper = Keeper(self.bank, limit)
        watched = experiment.config.tracking.system_metrics and self.team.first
        self.system = SystemMetrics() if watched else None
        delimiter = self.phase3.candidate.delimiter
        self.delimiters = DelimiterWatch(delimiter.mass_cap, delimiter.warn_ratio, self.bank.documents, warn)
        self.done = 0  # steps; more than 0 at the start of a run that is resumed

    def k_at(self, step: int) -> int:
        """Candidates a slot may mix at `step`."""
        train = self.phase3.train
        return topk_at(min(1.0, step / train.steps), train.topk_schedule, train.topk_milestones)

    def run(self, after_step: Callable[[int], object] = lambda _: None) -> Outcome:
        """Train, from step `done` on; `after_step(step)` is called when a step is done and logged."""
        with self.clock.part("train"):
            return self._run(after_step)

    def _run(self, after_step: Callable[[int], object]) -> Outcome:
        train = self.phase3.train
        started, first = time.perf_counter(), self.done
        for step in range(first, train.steps):
            if self.rule.due(step) and self.tick(step) is None:
                return self._kept(step, None)
            if step % train.hard_pool_refresh == 0:
                self._mine(step)
            metrics = self._step(step)
            metrics[ledger.STEPS_PER_SECOND] = (step + 1 - first) / (time.perf_counter() - started)
            self.log.log_metrics(metrics, step)
            self.done = step + 1
            after_step(step)
            self.finite.check()
        result = self.tick(train.steps)
        if result is None or train.keep == "best_feasible":
            return self._kept(train.steps, result)
        return Outcome(train.steps, self.k_at(train.steps), result)

    # ---- one optimiser step ------------------------------------------------------------------------------------------

    def _step(self, step: int) -> dict[str, float]:
        experiment, loss, train = self.experiment, self.phase3.loss, self.phase3.train
        k = self.k_at(step)
        on = torch.randperm(len(experiment.encoded.on_train), generator=self.on_order)[
            : train.on_batch
        ].tolist()
        terms = self._terms(k, on, self._off_batch())
        total = terms.total(Weights(loss.lambda_on, self.dual.lambda_off, loss.lambda_str))
        self.optimiser.zero_grad()
        total.backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.bank.parameters() if p.grad is not None]
        ).item()
        losses = {
            ledger.LOSS: total.item(),
            ledger.LOSS_ON: terms.on.item(),
            ledger.LOSS_OFF: terms.off.item(),
            ledger.LOSS_STR: terms.structure.item(),
        }
        prompts = [experiment.encoded.on_train[i].source.id for i in on]
        if self.finite.observe(step, {**losses, ledger.GRAD_NORM: norm}, prompts):
            self.optimiser.step()
        self.traces.loss.append({"step": step, **losses})
        if not self.traces.topk or self.traces.topk[-1]["topk"] != k:
            self.traces.topk.append({"step": step, "topk": k})
        return {
            **losses,
            **self._mass(step, k),
            **self.delimiters.observe(step, self.bank.delimiter_mass(k)),
            ledger.LAMBDA_OFF: self.dual.lambda_off,
            ledger.TOPK: k,
            ledger.GRAD_NORM: norm,
            ledger.NONFINITE_STEPS: self.finite.total,
            **_measured({ledger.SLOT_MASS_ON: terms.slot_mass_on, ledger.SLOT_MASS_OFF: terms.slot_mass_off}),
            ledger.PROXY_USED: float(self.source.used != "hf"),
            ledger.EFFECTIVE_POPULATION_TAIL: loss.off.cvar_tail_fraction
            * len(self._off_source())
            / len(self.off),
        }

    def _terms(self, k: int, on: list[int], off: Part) -> Terms:
        """The three losses of one minibatch, from the source that is in use."""
        experiment, loss, source = self.experiment, self.phase3.loss, self.source.used
        if source == "proxy":
            return Terms(*self._proxy_terms(k, on, off), self.bank.structure(k).loss, None, None)
        terms = loss_terms(
            self.model,
            self.bank,
            k,
            on=[experiment.encoded.on_train[i] for i in on],
            on_prompts=experiment.on.take(on),
            teacher=[experiment.teacher_train[i] for i in on],
            on_kind=loss.on.type,
            off=off,
            tail_fraction=loss.off.cvar_tail_fraction,
            batch_rows=self.phase3.eval.batch_rows,
            rows=self.phase3.train.batch_rows,
        )
        return terms if source == "hf" else terms.blended(*self._proxy_terms(k, on, off), loss.blend)

    def _proxy_terms(self, k: int, on: list[int], off: Part) -> tuple[Tensor, Tensor]:
        """ON and OFF loss by proxy, in nats by the factors of the last tick."""
        tail = self.phase3.loss.off.cvar_tail_fraction
        on_term = self.scale.on * self.proxies.on_term(self.bank, k, on)
        return on_term, self.scale.off * self.proxies.off_term(self.bank, k, off.places, tail)

    def _off_source(self) -> Part:
        if self.phase3.loss.off.train_source == "hard_pool":
            return self.off.take(self.pool.indices)
        return self.stress_prompts.take(range(len(self.stress_prompts)))  # debug only

    def _off_batch(self) -> Part:
        source = self._off_source()
        order = torch.randperm(len(source), generator=self.off_order)[: self.phase3.train.off_batch]
        return source.take(order.tolist())

    def _mine(self, step: int) -> None:
        with self.clock.part("hard_pool"):
            k, off = self.k_at(step), self.phase3.loss.off
            size, rows = off.hard_pool_size, self.phase3.eval.batch_rows
            ranked = (
                None if off.prerank is None else self.proxies.ranked_off(self.bank, k, off.prerank * size)
            )
            states = self.bank.states(k).detach()
            self.pool = mine(self.model, states, self.off, size, batch_rows=rows, ranked=ranked)

    def _mass(self, step: int, k: int) -> dict[str, float]:
        """Mixture mass by atom type: the mean over slots, and the largest delimiter mass of a slot."""
        if not self.phase3.reporting.atom_type_mass:
            return {}
        by_type = self.bank.type_mass(k)
        row = {kind: by_type[kind].mean().item() if kind in by_type else 0.0 for kind in ledger.ATOM_TYPES}
        # Where heads mix for themselves the cap holds for each, so the worst one counts, not their mean.
        most = self.bank.delimiter_mass(k).max().item()
        self.traces.mass.append({"step": step, **row, "delimiter_slot_max": most})
        return {ledger.atom_mass(kind): value for kind, value in row.items()} | {
            ledger.DELIMITER_SLOT_MAX: most
        }

    def _slots(self, step: int, k: int) -> list[dict[str, Any]]:
        """The delimiter mass of every slot, after the cap, a row for each state."""
        mass = self.bank.delimiter_mass(k).tolist()
        return [
            {"step": step, "document": document, "mass": row}
            for document, row in zip(self.bank.documents, mass, strict=True)
        ]

    # ---- eval ticks --------------------------------------------------------------------------------------------------

    def tick(self, step: int) -> StressResult | None:
        """Measure the fixed stress set, move λ_off where that is due, watch the constraint.

        The end of a run is an eval tick whatever its step. None: an early stop was confirmed.
        """
        with self.clock.part("tick"):
            return self._tick(step)

    def _tick(self, step: int) -> StressResult | None:
        k = self.k_at(step)
        self.team.check_equal(self.bank.parameters(), f"step {step}: the memory")
        result = self.measured(k)
        deltas = result.delta.tolist()
        p99 = _p99(deltas)
        if self.rule.due(step):
            self._move_lambda(step, p99)
        stopped = self._watch(step, p99)
        on_loss = fixed_on_loss(self.experiment, self.bank, k, self.phase3.loss.on.type)
        self.keeper.offer(step, k, p99, on_loss)
        truth = self.proxies.truth(self.bank, k, step, result)
        self.scale = truth.scale
        self.source.observe(step, truth.metrics[ledger.PROXY_OFF_SPEARMAN])
        self.traces.proxy += truth.rows
        self.traces.slots += self._slots(step, k)
        self.log.log_metrics(
            {
                ledger.P99_STRESS: p99,
                ledger.P99_TYPICAL: _p99(result.typical.tolist()),
                ledger.MEAN_STRESS: sum(deltas) / len(deltas),
                ledger.MAX_STRESS: max(deltas),
                ledger.P99_UPPER: stats.upper_bound(deltas) if math.isfinite(p99) else math.nan,
                ledger.ON_LOSS_FIXED: on_loss,
                **truth.metrics,
                **_measured({ledger.RESIDUAL_SHARE: self.bank.residual_share(k)}),
                ledger.LAMBDA_OFF: self.dual.lambda_off,
                **self.clock.metrics(),
                **(self.system.look() if self.system else {}),
            },
            step,
        )
        self.ticks += 1
        self.watch(step, p99, on_loss)
        return None if stopped else result

    def _move_lambda(self, step: int, p99: float) -> None:
        """The dual's update; in debug its source may be the hard pool, and its tag says so."""
        source = self.phase3.train.lambda_off.dual.metric_source
        raw = p99 if source == ledger.SOURCE_FIXED else _p99(self._pool_deltas(step))
        self.dual = self.rule.update(self.dual, raw)
        ema = math.nan if self.dual.p99_ema is None else self.dual.p99_ema
        self.traces.dual.append(
            {
                "tick": self.ticks,
                "step": step,
                "p99_raw": raw,
                "p99_ema": ema,
                "delta": self.dual.delta,
                "lambda_off": self.dual.lambda_off,
            }
        )
        self.log.log_metrics({ledger.P99_RAW: raw, ledger.P99_EMA: ema}, step)

    def _pool_deltas(self, step: int) -> list[float]:
        if not self.pool.deltas:
            self._mine(step)
        return list(self.pool.deltas)

    def _watch(self, step: int, p99: float) -> bool:
        """Constraint warning: True where a confirmed violation stops the run early."""
        constraint = self.phase3.train.constraint_warn
        if not constraint.enabled or self.ticks % constraint.eval_every:
            return False
        source = self.phase3.loss.off.constraint_source
        value = p99 if source == ledger.SOURCE_FIXED else _p99(self._pool_deltas(step))
        self.warning = self.constraint.observe(self.warning, value)
        verified = self._verify(step) if self.warning.onset else None
        self.traces.warn.append(
            {
                "tick": self.ticks,
                "step": step,
                "value": value,
                "limit": self.constraint.limit,
                "margin": self.constraint.margin,
                "consecutive": self.warning.consecutive,
                "triggered": self.warning.triggered,
                "verified": verified,
            }
        )
        self.log.log_metrics(
            {
                ledger.WARN_CONSECUTIVE: self.warning.consecutive,
                ledger.WARN_TRIGGERED: self.warning.triggered,
            },
            step,
        )
        confirmed = verified is not None and verified > self.constraint.limit + self.constraint.margin
        if not confirmed:
            return False
        told = (
            f"step {step}: off_delta_p99_stress {verified:.4g} nats is over its limit {self.constraint.limit:g} "
            f"for {self.warning.consecutive} eval ticks, confirmed by plain forward passes"
        )
        if constraint.action == "abort":
            raise ConstraintViolatedError(told)
        self.warn(told)
        return constraint.action == "early_stop"

    def _verify(self, step: int) -> float:
        """The p99 of the whole fixed set by plain forward passes of the whole model."""
        with self.clock.part("verify"):
            states = self.bank.states(self.k_at(step)).detach()
            rows = self.phase3.eval.batch_rows
            result = stress(self.model, states, self.stress_prompts, batch_rows=rows, plain=True)
        return _p99(result.delta.tolist())

    def _kept(self, step: int, last: StressResult | None) -> Outcome:
        """The best feasible memory, its stress measured again; where there was none, the last one.

        Args:
            last: the stress of the memory as it is, where it is known.
        """
        kept = self.keeper.restore()
        k = self.k_at(step) if kept is None else kept.k
        as_it_is = last if kept is None or kept.step == step else None
        return Outcome(step, k, as_it_is or self.measured(k), kept)

    def measured(self, k: int) -> StressResult:
        """The fixed stress set under the memory as it is, `k` candidates a slot."""
        with self.clock.part("tick"):
            states = self.bank.states(k).detach()
            return stress(self.model, states, self.stress_prompts, batch_rows=self.phase3.eval.batch_rows)


def _measured(found: dict[str, float | None]) -> dict[str, float]:
    """Those that were measured."""
    return {name: value for name, value in found.items() if value is not None}


def _groups(bank: MemoryBank, train: Train) -> list[dict[str, Any]]:
    """Adam's parameter groups."""
    gate = [] if bank.gate is None else list(bank.gate.parameters())
    groups = (
        ([bank.logits], train.lr),
        (gate, train.gate_lr),
        (list(bank.residuals.values()), train.residual_lr),
    )
    return [{"params": parameters, "lr": lr} for parameters, lr in groups if parameters]


def _p99(values: list[float]) -> float:
    """p99 as an order statistic; NaN where any value is not a number."""
    return math.nan if any(map(math.isnan, values)) else stats.order_statistic_quantile(values)
