"""Optuna's side: storages, who begins, budgets, ranking; on a real storage."""

from __future__ import annotations

import time
from threading import Thread

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from cedkv.core.errors import UserError
from cedkv.tuner import studies
from cedkv.tuner.score import Score
from cedkv.tuner.spec import Pruning, Range, Spec
from cedkv.tuner.studies import Budget, best_objective, ranked, since_improvement

LR = optuna.distributions.FloatDistribution(0.1, 1.0)
SPEC = Spec.model_validate(
    {"space": {"phase3.train.lr": {"low": 0.1, "high": 1.0}}, "objective": {"on_gain": 1.0}}
)


@pytest.fixture(autouse=True)
def _quiet():
    studies.quiet()


def trial(
    number: int,
    objective: float | None = None,
    *,
    keeps: bool = True,
    seeds: int = 1,
    state=TrialState.COMPLETE,
    **attrs,
):
    made = create_trial(
        state=state,
        value=objective if state is TrialState.COMPLETE else None,
        params={"lr": 0.5},
        distributions={"lr": LR},
        system_attrs=attrs,
        user_attrs={}
        if objective is None
        else {
            studies.SCORE: studies.scored(Score(objective, {"a": -1.0 if keeps else 1.0}, {})),
            studies.OBJECTIVES: [objective] * seeds,
        },
    )
    made.number = number
    return made


def test_the_best_keeps_every_constraint():
    trials = [trial(0, 0.5), trial(1, 0.1, keeps=False), trial(2, 0.4), trial(3, state=TrialState.PRUNED)]
    assert [one.number for one, _ in ranked(trials)] == [2, 0, 1]
    assert best_objective(trials, 1) == 0.4
    assert best_objective([trials[1]], 1) is None


def test_a_trial_with_fewer_seeds_is_no_best_to_be_measured_against():
    """Else a lucky first seed would keep all others from their second one."""
    trials = [trial(0, 0.5, seeds=2), trial(1, 0.1, seeds=1)]
    assert best_objective(trials, 2) == 0.5
    assert best_objective(trials[1:], 2) is None


def test_a_score_survives_the_storage_infinities_included():
    found = studies.score_of(trial(0, 0.5))
    assert (found.objective, found.broken) == (0.5, {"a": -1.0})
    lost = Score(float("inf"), {"a": float("inf")}, {"m": float("nan")})
    told = studies.scored(lost)
    assert told["objective"] == "inf"
    made = trial(1, 1.0)
    made.user_attrs = {studies.SCORE: told}
    assert studies.score_of(made).broken == {"a": float("inf")}


def test_a_budget_counts_configurations_and_what_is_run_again_once():
    ended = [trial(0, 0.5), trial(1, state=TrialState.FAIL), trial(2, 0.4, retry_history=[1])]
    assert Budget(3).spent(ended) == ""
    assert Budget(2).spent(ended) == "2 trials are run"
    waiting = [*ended, trial(3, state=TrialState.WAITING)]
    assert Budget(2).spent(waiting) == ""  # somebody's worker died: its trial is run, whatever the budget
    assert Budget(2, deadline=time.monotonic() - 1).spent(waiting) == "the time is up"


def test_patience_counts_what_ended_after_the_best():
    trials = [trial(0, 0.5), trial(1, 0.1, keeps=False), trial(2, state=TrialState.PRUNED), trial(3, 0.6)]
    assert since_improvement(trials) == 3
    assert since_improvement([*trials, trial(4, 0.3)]) == 0
    assert since_improvement([trials[1], trials[2]]) == 0  # nothing found yet: there is no best to improve on
    assert Budget(9, patience=3).spent(trials) == "no improvement in 3 trials"


@pytest.mark.parametrize(("keep", "ended"), [(1.0, []), (0.75, [3, 4, 5])])
def test_pruning_ends_the_share_that_is_not_kept_and_none_where_all_are(tmp_path, keep, ended):
    spec = SPEC.model_copy(update={"pruning": Pruning(keep=keep, after_trials=3)})
    storage = studies.open_storage(f"sqlite:///{tmp_path}/tune.db")
    study = studies.join(storage, "s", spec, seed=1, facts={}, first=[], begin=lambda: "run")

    def worse_than_all_before(trial: optuna.Trial) -> float:
        trial.report(float(trial.number), 10)
        if trial.should_prune():
            raise optuna.TrialPruned
        return float(trial.number)

    study.optimize(worse_than_all_before, n_trials=6)
    assert [one.number for one in study.get_trials(states=[TrialState.PRUNED])] == ended


def test_the_first_worker_begins_and_the_others_join(tmp_path):
    storage = studies.open_storage(f"sqlite:///{tmp_path}/tune.db")
    begun: list[str] = []

    def begin() -> str:
        time.sleep(0.5)  # the others come meanwhile
        begun.append("run")
        return "run"

    found = []

    def join() -> None:
        found.append(
            studies.join(
                storage,
                "s",
                SPEC,
                seed=1,
                facts={"configuration": "a"},
                first=[{"phase3.train.lr": 0.5}],
                begin=begin,
            )
        )

    workers = [Thread(target=join) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert begun == ["run"]
    assert len(found) == 4
    assert {study.user_attrs[studies.PARENT] for study in found} == {"run"}
    (first,) = found[0].get_trials()
    assert first.state is TrialState.WAITING
    with pytest.raises(UserError, match=r"'s' was begun with another configuration: give .* --study"):
        studies.join(storage, "s", SPEC, seed=1, facts={"configuration": "b"}, first=[], begin=lambda: "no")


def test_a_worker_that_died_while_it_began_is_replaced(tmp_path, monkeypatch):
    storage = studies.open_storage(f"sqlite:///{tmp_path}/tune.db")
    optuna.create_study(storage=storage, study_name="s")  # and then it died
    waited = studies._wait_until_ready
    monkeypatch.setattr(studies, "_wait_until_ready", lambda study: waited(study, 0.3))
    study = studies.join(storage, "s", SPEC, seed=1, facts={}, first=[{}], begin=lambda: "run")
    assert study.user_attrs[studies.PARENT] == "run"
    assert len(study.get_trials()) == 1


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://me:secret@host/db", "holds a password"),
        ("sqlite:////proc/nowhere/tune.db", "cannot be opened"),
        ("nonsense", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(uri, told):
    with pytest.raises(UserError, match=told) as caught:
        studies.open_storage(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("allowed", "kind"),
    [
        (Range(low=0.1, high=10.0, log=True), float),
        (Range(low=1.0, high=9.0, whole=True), int),
        (Range(choices=("a", 4, None)), None),
    ],
)
def test_what_is_suggested_lies_in_the_range(allowed, kind):
    study = optuna.create_study()
    values = [studies.suggest(study.ask(), "key", allowed) for _ in range(20)]
    assert all(map(allowed.holds, values))
    assert kind is None or all(type(value) is kind for value in values)
    assert len(set(values)) > 1
