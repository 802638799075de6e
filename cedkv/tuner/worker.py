"""One worker of a study: it takes trials from the shared storage until the budget is spent, scale by scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from cedkv import ledger
from cedkv.config import Config, config_hash
from cedkv.core.errors import StoppedError, UserError
from cedkv.core.hashing import content_hash
from cedkv.tracking.attach import write_back
from cedkv.tracking.encode import encode_lines
from cedkv.tracking.reader import list_runs, read_run
from cedkv.tracking.signals import SignalGuard
from cedkv.tracking.study_run import mark_study_run, note_study, open_study_run, trial_tags
from cedkv.train.desk import attach_page
from cedkv.train.finite import NonFiniteError
from cedkv.train.loop import ConstraintViolatedError
from cedkv.train.trial import ignore
from cedkv.tuner import report, studies
from cedkv.tuner.runs import Runner
from cedkv.tuner.scale import Scale
from cedkv.tuner.score import Score, is_contender, noise, score, together
from cedkv.tuner.spec import Scalar, Spec

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A study.

    Args:
        name: under which workers find it, in the storage and in the log.
        scales: the configurations it runs at; the search is at the first, the best go on to the others.
        current: what the searched keys are in the configuration itself.
        keep: how many of the best go on; half as many at each further scale.
        confirm_seeds: runs of each of them, with data and order that the search has not seen.
    """

    name: str
    spec: Spec
    spec_text: str
    scales: tuple[Scale, ...]
    current: Mapping[str, Scalar]
    budget: studies.Budget
    keep: int = 3
    confirm_seeds: int = 3

    def facts(self, scale: int) -> dict[str, str]:
        """What all workers of a scale (from 0) must agree on."""
        shared = {
            "configuration": config_hash(self.scales[scale].config({})),
            "space": content_hash([self.spec.model_dump(mode="json")]),
        }
        return shared if scale == 0 else shared | {"number of seeds": str(self.confirm_seeds)}

    def study_name(self, scale: int) -> str:
        """What the storage calls the study of one scale (from 0)."""
        return self.name if scale == 0 else f"{self.name} · scale {scale + 1} {self.scales[scale].file.stem}"

    def seeds(self, scale: int) -> range:
        """The seeds of a scale (from 0): none of them was used at a smaller one."""
        if scale == 0:
            return range(self.spec.seeds)
        start = self.spec.seeds + (scale - 1) * self.confirm_seeds
        return range(start, start + self.confirm_seeds)


@dataclass(frozen=True, slots=True)
class Found:
    """How a study ended: its run, a table of the last scale for people, and the best configuration where one was found."""

    run_id: str
    table: str
    best: str | None
    why: str


@dataclass(slots=True)
class _Watcher:
    """Reports a run's merit at its eval ticks, and ends it where the pruner says so.

    The merit is what the run would be worth if it ended there: the ON loss of its memory, plus what its p99 is over the
    limit (an exact penalty). Optuna compares the best merit so far with those of other trials at the same step, so nothing is
    reported before a trial has had its share of steps: all of them begin with the same memory.
    """

    trial: optuna.Trial
    limit: float
    first_step: float

    def __call__(self, step: int, p99: float, on_loss: float) -> None:
        if step < self.first_step:
            return
        merit = on_loss + max(0.0, p99 - self.limit) / self.limit
        self.trial.report(merit if math.isfinite(merit) else math.inf, step)
        if self.trial.should_prune():
            raise StoppedError(f"pruned at step {step}: among the worst of its study there")


@dataclass(slots=True)
class Worker:
    """Runs a plan's trials in this process, one after the other."""

    plan: Plan
    storage: Any
    say: Say
    runner: Runner = field(init=False)
    _going: bool = False

    def __post_init__(self) -> None:
        self.runner = Runner(kept=self.plan.spec.seeds)

    def work(self) -> Found:
        """Search, promote, confirm; the study's end where this worker is the last.

        SIGTERM and Ctrl-C end it at any time, and leave its trial to others.

        Raises:
            UserError: the study was begun with something else.
        """
        guard = SignalGuard()
        guard.install()  # a run has one of its own, but much of a trial is before and after its run
        try:
            return self._work()
        finally:
            guard.restore()

    def _work(self) -> Found:
        plan, why = self.plan, ""
        first: list[Mapping[str, Scalar]] = [plan.current]
        parent = ""
        for at, scale in enumerate(plan.scales):
            begin = partial(self._begin, scale) if at == 0 else partial(str, parent)
            study = studies.join(
                self.storage,
                plan.study_name(at),
                plan.spec,
                seed=scale.config({}).phase3.train.seed,
                facts=plan.facts(at),
                first=first,
                begin=begin,
            )
            parent = study.user_attrs[studies.PARENT]
            budget = plan.budget if at == 0 else studies.Budget(len(first))
            stopped = self._search(study, at, budget)
            why = why or stopped
            first = [plan.current, *self._promoted(study, max(1, plan.keep >> at))]
        return self._finish(study, parent, why)

    # ---- one scale -------------------------------------------------------------------------------------------------

    def _search(self, study: Study, at: int, budget: studies.Budget) -> str:
        while True:
            why = budget.spent(study.get_trials(deepcopy=False))
            if not why:
                studies.check_facts(study, self.plan.facts(at))  # files may be edited while a study runs
                self._go_on(study)
                study.optimize(partial(self._trial, study, at), n_trials=1)
                self._note(study, at)
            elif studies.wait_for_others(study, self.say) or budget.deadline is not None:
                return why

    def _go_on(self, study: Study) -> None:
        """A study that was finished, and now has a larger budget, runs again."""
        if not self._going:
            self._going = True
            mark_study_run(study.user_attrs[studies.PARENT], self.plan.scales[0].uri, "RUNNING")

    def _promoted(self, study: Study, keep: int) -> list[Mapping[str, Scalar]]:
        """Keys of the best trials, without the current configuration, which goes on anyway.

        Also those that break a constraint, where no others are left: at a larger scale it may be kept.
        """
        found: list[Mapping[str, Scalar]] = []
        for trial, _ in studies.ranked(study.get_trials(deepcopy=False)):
            if trial.params != self.plan.current and trial.params not in found:
                found.append(trial.params)
        return found[:keep]

    # ---- one trial -------------------------------------------------------------------------------------------------

    def _trial(self, study: Study, at: int, trial: optuna.Trial) -> float:
        changes = {key: studies.suggest(trial, key, allowed) for key, allowed in self.plan.spec.space.items()}
        try:
            worth = _Configuration(self, study, at, trial, changes).score()
        except (KeyboardInterrupt, SystemExit) as ended:
            studies.retry(study, trial)
            if isinstance(ended, SystemExit):  # Optuna ends a trial for the other one only
                study.tell(trial, state=TrialState.FAIL)
            raise
        except (StoppedError, NonFiniteError, ConstraintViolatedError, UserError) as ended:
            if isinstance(ended, UserError) and changes == dict(self.plan.current):
                raise  # what the study starts from cannot be run, so nothing can
            trial.set_user_attr(studies.ENDED, str(ended))
            # What has no score must not look better to the sampler than what has one and breaks something.
            trial.set_constraint("finished", studies.UNFINISHED)
            self.say(f"trial {trial.number} at {self.plan.scales[at].file.stem}: {ended}")
            raise optuna.TrialPruned(str(ended)) from None
        trial.set_user_attr(studies.SCORE, studies.scored(worth))
        for name, value in worth.broken.items():
            trial.set_constraint(name, min(value, studies.UNFINISHED))
        self.say(f"trial {trial.number} at {self.plan.scales[at].file.stem}: {_told(worth)}")
        return worth.objective

    def baseline(self, study: Study, at: int, seed: int) -> str:
        """The Phase 2 run of the current configuration on this seed's data: one that is in the log, else a new one."""
        scale, parent = self.plan.scales[at], study.user_attrs[studies.PARENT]
        config = scale.config({}, seed, phase=2, name=f"baseline · seed {seed}")
        wanted = {
            ledger.TAG_CONFIG_HASH: config_hash(config),
            ledger.TAG_PHASE: ledger.PHASE_BASELINE,
            ledger.TAG_PARENT: parent,
        }
        for run in list_runs(scale.experiment, scale.uri, view_all=False):
            if run.status == "FINISHED" and all(run.tags.get(tag) == value for tag, value in wanted.items()):
                return run.run_id
        tags = trial_tags(parent, self.plan.name, at + 1, "baseline")
        return self.runner.run(config, 2, tags=tags, opened=lambda _: None)

    # ---- the study's run ---------------------------------------------------------------------------------------------

    def _begin(self, scale: Scale) -> str:
        tags = {ledger.TAG_STUDY: self.plan.name, ledger.TAG_SCHEMA: ledger.SCHEMA_VERSION}
        params = {"space": self.plan.spec.model_dump(mode="json")["space"], "trials": self.plan.budget.trials}
        return open_study_run(
            scale.uri,
            scale.experiment,
            self.plan.name,
            tags=tags,
            params=params,
            files={ledger.TUNE_SPEC: self.plan.spec_text},
        )

    def _note(self, study: Study, at: int) -> None:
        """The study's run as the storage has it now."""
        trials = study.get_trials(deepcopy=False)
        last = max(trials, key=lambda trial: str(trial.datetime_complete or ""))
        metrics = {}
        if at == 0:
            worth = studies.score_of(last)
            found = {
                ledger.TUNE_OBJECTIVE: None if worth is None else worth.objective,
                ledger.TUNE_BEST: studies.best_objective(trials, self.plan.spec.seeds),
            }
            metrics = {
                name: value for name, value in found.items() if value is not None and math.isfinite(value)
            }
            shares = studies.importance(study)
            metrics |= {ledger.TUNE_IMPORTANCE_PREFIX + key: share for key, share in shares.items()}
        uri, parent = self.plan.scales[0].uri, study.user_attrs[studies.PARENT]
        note_study(parent, uri, metrics=metrics, step=last.number, files=self._files(at))

    def _files(self, at: int) -> dict[str, str]:
        """The rows of every scale up to this one."""
        rows = []
        for scale in range(at + 1):
            study = optuna.load_study(storage=self.storage, study_name=self.plan.study_name(scale))
            rows.append(report.rows(study.get_trials(deepcopy=False), self.plan.scales[scale].file.stem))
        searched, confirmed = rows[0], [row for later in rows[1:] for row in later]
        files = {ledger.TUNE_TRIALS: encode_lines(searched)[0]}
        return files | ({ledger.TUNE_CONFIRMED: encode_lines(confirmed)[0]} if confirmed else {})

    def _finish(self, study: Study, parent: str, why: str) -> Found:
        best = studies.ranked(study.get_trials(deepcopy=False))
        table = report.table(self.plan, study.get_trials(deepcopy=False))
        uri = self.plan.scales[0].uri
        text = None
        if best and best[0][1].feasible:
            text = report.best_config(self.plan, parent, best[0][0], table)
            note_study(parent, uri, metrics={}, step=0, files={ledger.TUNE_BEST_CONFIG: text})
        mark_study_run(parent, uri, "FINISHED")
        if problem := attach_page(parent, uri):
            self.say(f"warning: {problem}")
        return Found(parent, table, text, why)


@dataclass(frozen=True, slots=True)
class _Configuration:
    """One configuration of a study, on its way through its seeds."""

    worker: Worker
    study: Study
    at: int
    trial: optuna.Trial
    changes: Mapping[str, Scalar]

    def score(self) -> Score:
        """Its score, over as many seeds as it takes to tell it from the best."""
        scores: list[Score] = []
        for seed in self.worker.plan.seeds(self.at):
            if scores and self.at == 0 and not self._is_contender(scores):
                break
            scores.append(self._one(seed, first=not scores))
            self.trial.set_user_attr(studies.OBJECTIVES, [one.objective for one in scores])
        return together(scores)

    def _watcher(self, config: Config) -> _Watcher:
        steps = self.worker.plan.spec.pruning.after_share * config.phase3.train.steps
        return _Watcher(self.trial, config.phase3.thresholds.off_delta_p99_max, steps)

    def _is_contender(self, scores: list[Score]) -> bool:
        """Whether the next seed is worth it; for the current configuration always, which is how the noise becomes known."""
        plan = self.worker.plan
        if dict(self.changes) == dict(plan.current):
            return True
        trials = self.study.get_trials(deepcopy=False)
        sigma = noise([trial.user_attrs.get(studies.OBJECTIVES, []) for trial in trials])
        return is_contender(together(scores), studies.best_objective(trials, plan.spec.seeds), sigma)

    def _one(self, seed: int, *, first: bool) -> Score:
        """Train with one seed, and score what was logged. Only the first one is compared with others on its way."""
        plan, trial, scale = self.worker.plan, self.trial, self.worker.plan.scales[self.at]
        baseline = self.worker.baseline(self.study, self.at, seed)
        config = scale.config(self.changes, seed, name=f"trial {trial.number} · seed {seed}")
        tags = trial_tags(self.study.user_attrs[studies.PARENT], plan.name, self.at + 1, str(trial.number))
        watch = self._watcher(config) if first and self.at == 0 else ignore

        def opened(run_id: str) -> None:
            known = [] if first else trial.user_attrs.get(studies.RUNS, [])
            trial.set_user_attr(studies.RUNS, [*known, run_id])

        run_id = self.worker.runner.run(config, 3, tags=tags, opened=opened, watch=watch)
        logged, before = read_run(run_id, scale.uri).metrics, read_run(baseline, scale.uri).metrics
        found = score(plan.spec, config.model_dump(mode="json"), logged, before)
        write_back(run_id, scale.uri, tags={}, metrics=report.as_metrics(found), files={})
        return found


def _told(worth: Score) -> str:
    broken = [f"{name} by {value:.3g}" for name, value in worth.broken.items() if value > 0]
    kept = "every constraint kept" if not broken else f"breaks {', '.join(broken)} of its limit"
    return f"objective {worth.objective:.4g}, {kept}"
