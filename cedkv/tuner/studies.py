"""Optuna's side of a study: where it is kept, who begins it, which trials there are, when it is done."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cedkv.core.errors import UserError
from cedkv.tracking.store import shown
from cedkv.tuner.score import Score
from cedkv.tuner.spec import Range, Scalar, Spec

HEARTBEAT_S: Final = 15
GRACE_S: Final = 90
"""Seconds without a heartbeat after which a worker counts as dead and its trial is run again."""
RETRIES: Final = 2
UNFINISHED: Final = 1e9
"""How far a trial that was ended before its time breaks the constraint to finish: more than any score does."""
READY: Final = "ready"
FACTS: Final = "facts"
PARENT: Final = "parent"
SCORE: Final = "score"
RUNS: Final = "runs"
OBJECTIVES: Final = "objectives"
ENDED: Final = "ended"
"""What a study and its trials keep beside Optuna's own: user attributes of these names."""


def quiet() -> None:
    """Optuna says less; what matters is said here."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def _experimental() -> Iterator[None]:
    """Parts of Optuna that have been called experimental for years say so at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_storage(uri: str) -> RDBStorage:
    """The storage that workers share: a SQLite file on one machine, a database server for several.

    Raises:
        UserError: it is no such URI, holds a password, or cannot be opened.
    """
    if shown(uri) != uri:
        raise UserError(
            f"storage {shown(uri)!r} holds a password, which others could read in the list of processes: take it out and give it in "
            "PGPASSWORD or ~/.pgpass"
        )
    try:
        if not uri.startswith("sqlite:///"):
            return _at_a_server(uri)
        file = Path(uri.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # two that make its tables at once would both fail
            return _storage(uri, {"connect_args": {"timeout": 60}})
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"the storage {uri!r} of the study cannot be opened ({type(error).__name__}: {told}); give sqlite:////path/tune.db or "
            "postgresql://user@host/database with --storage, a database of its own and not MLflow's"
        ) from error


def _at_a_server(uri: str, tries: int = 3) -> RDBStorage:
    """Of two that make the tables at once one fails, and finds them there a moment later."""
    for _ in range(tries - 1):
        with suppress(Exception):
            return _storage(uri, {"pool_pre_ping": True})
        time.sleep(1.0)
    return _storage(uri, {"pool_pre_ping": True})


def _storage(uri: str, engine: dict[str, Any]) -> RDBStorage:
    with _experimental():
        return RDBStorage(
            uri,
            engine_kwargs=engine,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )


def join(
    storage: RDBStorage,
    name: str,
    spec: Spec,
    *,
    seed: int,
    facts: Mapping[str, str],
    first: Sequence[Mapping[str, Scalar]],
    begin: Callable[[], str],
) -> Study:
    """The study of one scale. The first worker begins it; the others wait until it is begun.

    Args:
        seed: of the sampler, for the worker that begins; one worker alone repeats a study exactly.
        facts: what all workers must agree on.
        first: configurations to run before any other.
        begin: makes the study's run in the log; its id.

    Raises:
        UserError: the study was begun with other facts.
    """
    pruner = _pruner(spec)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, sampler=_sampler(spec, seed), pruner=pruner
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(
            storage=storage, study_name=name, sampler=_sampler(spec, None), pruner=pruner
        )
        _wait_until_ready(study)
    if not study.user_attrs.get(READY):
        study.set_user_attr(FACTS, dict(facts))
        study.set_user_attr(PARENT, begin())
        for values in first:
            study.enqueue_trial(dict(values), skip_if_exists=True)
        study.set_user_attr(READY, True)
    check_facts(study, facts)
    return study


def _sampler(spec: Spec, seed: int | None) -> optuna.samplers.BaseSampler:
    with _experimental():
        return optuna.samplers.TPESampler(n_startup_trials=spec.startup, multivariate=True, seed=seed)


def _pruner(spec: Spec) -> optuna.pruners.BasePruner:
    keep, after = spec.pruning.keep, spec.pruning.after_trials
    if keep == 1.0:  # the 100th percentile would still end whatever is worse than all before it
        return optuna.pruners.NopPruner()
    return optuna.pruners.PercentilePruner(100.0 * keep, n_startup_trials=after, n_min_trials=after)


def _wait_until_ready(study: Study, patience_s: float = 60.0) -> None:
    """Wait for the worker that begins; where it has died meanwhile, the caller begins in its place."""
    until = time.monotonic() + patience_s
    while not study.user_attrs.get(READY) and time.monotonic() < until:
        time.sleep(0.2)


def check_facts(study: Study, now: Mapping[str, str]) -> None:
    """Raise `UserError` where a study was begun with something else."""
    was = study.user_attrs[FACTS]
    differ = [key for key in now if was.get(key) != now[key]]
    if differ:
        raise UserError(
            f"study {study.study_name!r} was begun with another {' and another '.join(differ)}: give what it was begun with, or another name "
            "with --study"
        )


def suggest(trial: optuna.Trial, key: str, allowed: Range) -> Scalar:
    """The trial's value of one key."""
    if allowed.choices is not None:
        chosen: Scalar = trial.suggest_categorical(key, allowed.choices)
        return chosen
    assert allowed.low is not None
    assert allowed.high is not None
    if allowed.whole:
        return trial.suggest_int(key, int(allowed.low), int(allowed.high), log=allowed.log)
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log)


def retry(study: Study, trial: optuna.Trial) -> None:
    """Somebody else runs this trial, or this worker when it is started again."""
    with _experimental():
        again = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    again(study, study._storage.get_trial(trial._trial_id))  # noqa: SLF001 - as Optuna does for stale ones


def score_of(trial: FrozenTrial) -> Score | None:
    """What a finished trial was worth; None for one that has no score."""
    found = trial.user_attrs.get(SCORE)
    if found is None or trial.state is not TrialState.COMPLETE:
        return None
    read = {name: {key: float(value) for key, value in found[name].items()} for name in ("broken", "metrics")}
    return Score(float(found["objective"]), read["broken"], read["metrics"])


def scored(score: Score) -> dict[str, Any]:
    """A score as the storage keeps it: JSON knows no infinity."""
    return {
        "objective": _text(score.objective),
        "broken": {name: _text(value) for name, value in score.broken.items()},
        "metrics": {name: _text(value) for name, value in score.metrics.items()},
    }


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def order(score: Score) -> tuple[bool, float]:
    """Sorts scores: those that keep every constraint by objective, then the others by how much they break."""
    return (not score.feasible, score.objective if score.feasible else score.excess)


def ranked(trials: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, Score]]:
    """Trials with a score, the best first."""
    found = [(trial, score) for trial in trials if (score := score_of(trial)) is not None]
    return sorted(found, key=lambda pair: (order(pair[1]), pair[0].number))


def best_objective(trials: Sequence[FrozenTrial], seeds: int) -> float | None:
    """The objective of the best trial that keeps every constraint on all of its `seeds`."""
    whole = [trial for trial in trials if len(trial.user_attrs.get(OBJECTIVES, [])) == seeds]
    best = ranked(whole)
    return best[0][1].objective if best and best[0][1].feasible else None


@dataclass(frozen=True, slots=True)
class Budget:
    """When no further trial is begun. Trials count over all workers; time over this one."""

    trials: int
    patience: int | None = None
    deadline: float | None = None
    """of ``time.monotonic``"""

    def spent(self, trials: Sequence[FrozenTrial]) -> str:
        """Why no further trial is begun; empty while one is. A trial that waits is always run, but for the deadline."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "the time is up"
        if any(trial.state is TrialState.WAITING for trial in trials):
            return ""
        retried = {
            trial.system_attrs["retry_history"][-1]
            for trial in trials
            if trial.system_attrs.get("retry_history")
        }
        if sum(trial.number not in retried for trial in trials) >= self.trials:
            return f"{self.trials} trials are run"
        if self.patience is not None and since_improvement(trials) >= self.patience:
            return f"no improvement in {self.patience} trials"
        return ""


def since_improvement(trials: Sequence[FrozenTrial]) -> int:
    """Trials that ended since the best one did, in the order in which they ended; 0 before one keeps every constraint."""
    ended = [trial for trial in trials if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}]
    ended.sort(key=lambda trial: (trial.datetime_complete or trial.datetime_start, trial.number))
    best, since = math.inf, 0
    for trial in ended:
        score = score_of(trial)
        if score is not None and score.feasible and score.objective < best:
            best, since = score.objective, 0
        elif best < math.inf:
            since += 1
    return since


def wait_for_others(study: Study, say: Callable[[str], None], every_s: float = 1.0) -> bool:
    """Return when no trial runs anywhere; False as soon as one waits to be run, because its worker died."""
    said = False
    while True:
        with _experimental():
            optuna.storages.fail_stale_trials(study)
        states = {trial.state for trial in study.get_trials(deepcopy=False)}
        if TrialState.WAITING in states:
            return False
        if TrialState.RUNNING not in states:
            return True
        if not said:
            say("waiting for the trials of other workers ...")
            said = True
        time.sleep(every_s)


def importance(study: Study) -> dict[str, float]:
    """Share of each key in what makes trials good, constraints first (PED-ANOVA: Watanabe, Bansal, Hutter 2023)."""
    scores = {trial.number: score for trial, score in ranked(study.get_trials(deepcopy=False))}
    kept = [score.objective for score in scores.values() if score.feasible]
    worst = max(kept, default=0.0)

    def target(trial: FrozenTrial) -> float:
        score = scores[trial.number]
        return score.objective if score.feasible else worst + min(score.excess, 1e6)

    if len(scores) < 4:  # a quantile of fewer says nothing
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(optuna.importance.get_param_importances(study, target=target))
