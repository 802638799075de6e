"""A study for real: small runs in a real store, on a real storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from optuna.trial import TrialState

from cedkv import ledger
from cedkv.config import load
from cedkv.core.errors import StoppedError, UserError
from cedkv.core.team import ALONE
from cedkv.tracking.reader import list_runs, metric_history, read_rows, read_run
from cedkv.train.certification import certify
from cedkv.train.clock import Clock
from cedkv.train.main import run_training
from cedkv.tuner import studies
from cedkv.tuner.runs import Runner, what_is_prepared

ETA = "phase3.train.lambda_off.dual.eta"


@pytest.fixture(scope="module")
def study(run_study, store_template, tmp_path_factory):
    """Four trials, two seeds for contenders, the best one confirmed."""
    path = tmp_path_factory.mktemp("study") / "mlflow.db"
    shutil.copyfile(store_template, path)
    return run_study(f"sqlite:///{path}", trials=4, space={"seeds": 2}, scales=2, keep=1, confirm_seeds=1)


def children(study):
    return [
        run for run in list_runs("tuned", study.uri) if run.tags.get(ledger.TAG_PARENT) == study.found.run_id
    ]


def test_every_trial_is_a_run_below_the_studys_own(study):
    parent = read_run(study.found.run_id, study.uri)
    assert (parent.status, parent.is_study) == ("FINISHED", True)
    runs = children(study)
    assert len(runs) == len(list_runs("tuned", study.uri)) - 1
    assert not any(run.is_study for run in runs)
    by_trial = {(run.tags[ledger.TAG_SCALE], run.tags[ledger.TAG_TRIAL]) for run in runs}
    assert {("1", str(number)) for number in range(4)} | {("1", "baseline")} <= by_trial
    for run in runs:
        assert run.status == "FINISHED"
        assert run.tags[ledger.TAG_STUDY] == "s"
        assert {
            ledger.TAG_VERDICT,
            ledger.TAG_GIT_COMMIT,
            ledger.TAG_CONFIG_HASH,
            ledger.TAG_HASH_STRESS,
        } <= set(run.tags)
        assert ledger.TAG_EXPLORE_DEFAULT not in run.tags


def test_the_current_configuration_comes_first(study):
    first = study.trials()[0]
    assert first.params == study.plan.current
    assert len(first.user_attrs[studies.RUNS]) == 2  # and on every seed: so the noise is known


def test_scores_are_what_the_log_says(study):
    for trial in study.trials():
        runs = [read_run(run_id, study.uri) for run_id in trial.user_attrs[studies.RUNS]]
        objectives = [run.metrics[ledger.DUAL_STD] + 0.1 * run.metrics[ledger.P99_STRESS] for run in runs]
        assert trial.user_attrs[studies.OBJECTIVES] == pytest.approx(objectives)
        assert trial.value == pytest.approx(sum(objectives) / len(objectives))
        assert [run.metrics[ledger.TUNE_OBJECTIVE] for run in runs] == pytest.approx(objectives)


def test_seeds_draw_data_and_order_anew_and_larger_scales_see_fresh_ones(study):
    def seeds(scale: int) -> set[tuple[int, int]]:
        ids = [run_id for trial in study.trials(scale) for run_id in trial.user_attrs[studies.RUNS]]
        configs = [read_run(run_id, study.uri).config for run_id in ids]
        return {(config["data"]["seed"], config["phase3"]["train"]["seed"]) for config in configs}

    assert seeds(0) == {(3407, 3407), (3408, 3408)}
    assert seeds(1) == {(3409, 3409)}


def test_the_best_and_the_current_configuration_are_confirmed(study):
    searched, confirmed = study.trials(0), study.trials(1)
    best = [trial.params for trial, _ in studies.ranked(searched) if trial.params != study.plan.current][:1]
    assert [trial.params for trial in confirmed] == [study.plan.current, *best]


def test_the_studys_run_holds_rows_importance_and_the_best(study):
    rows = read_rows(study.found.run_id, ledger.TUNE_TRIALS, study.uri)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert sorted(row["rank"] for row in rows) == [1, 2, 3, 4]
    assert all(row["outcome"] == "keeps all" for row in rows)
    assert {row[ETA] for row in rows} == {trial.params[ETA] for trial in study.trials()}
    assert len(read_rows(study.found.run_id, ledger.TUNE_CONFIRMED, study.uri)) == 2
    metrics = read_run(study.found.run_id, study.uri).metrics
    shares = [value for name, value in metrics.items() if name.startswith(ledger.TUNE_IMPORTANCE_PREFIX)]
    assert sum(shares) == pytest.approx(1.0)
    objective = metric_history(study.found.run_id, [ledger.TUNE_OBJECTIVE], study.uri)[ledger.TUNE_OBJECTIVE]
    assert {point.step: point.value for point in objective} == pytest.approx(
        {trial.number: trial.value for trial in study.trials()}
    )
    assert metrics[ledger.TUNE_BEST] == pytest.approx(min(trial.value for trial in study.trials()))


def test_the_best_configuration_is_ready_to_run(study, tmp_path):
    file = tmp_path / "best.yaml"
    file.write_text(study.found.best)
    config = load(file, env={}).config
    best = studies.ranked(study.trials(1))[0][0]
    assert config.phase3.train.lambda_off.dual.eta == best.params[ETA]
    wanted = study.plan.scales[-1].config(best.params)
    assert config.phase3 == wanted.phase3
    assert config.data == wanted.data
    told = study.found.best.partition("\nmodel:")[0]
    assert all(run_id in told for run_id in best.user_attrs[studies.RUNS])
    assert study.found.table.splitlines()[0] in told


def test_a_trial_is_never_held_against_the_sealed_set(study):
    run_id = study.trials()[0].user_attrs[studies.RUNS][0]
    with pytest.raises(UserError, match="is a trial of study 's'"):
        certify(run_id, study.uri)


def test_the_same_command_again_changes_nothing_and_a_larger_budget_goes_on(study, run_study):
    before = {run.run_id for run in list_runs("tuned", study.uri)}
    again = run_study(study.uri, trials=4, space={"seeds": 2}, scales=2, keep=1, confirm_seeds=1)
    assert again.found.run_id == study.found.run_id
    assert {run.run_id for run in list_runs("tuned", study.uri)} == before
    longer = run_study(study.uri, trials=5, space={"seeds": 2})
    assert len(longer.trials()) == 5
    assert read_run(longer.found.run_id, study.uri).status == "FINISHED"


def test_what_is_prepared_once_gives_what_a_run_alone_gives(small_scale, store_uri):
    """Bit for bit: what a runner keeps for further trials holds nothing of the trials before."""
    scale = small_scale(store_uri)
    runner, tags = Runner(kept=1), {ledger.TAG_PARENT: "p"}
    changes = {ETA: 2.0, "phase3.loss.lambda_off": 1.0, "phase3.train.seed": 5, "phase3.loss.source": "proxy"}
    first = runner.run(scale.config({}), 3, tags=tags, opened=lambda _: None)
    second = runner.run(scale.config(changes), 3, tags=tags, opened=lambda _: None)
    alone = [run_training(scale.config(keys), phase=3, progress=False) for keys in ({}, changes)]
    for trial, run in zip((first, second), alone, strict=True):
        a, b = read_run(trial, store_uri), read_run(run, store_uri)
        names = [name for name in a.metrics if not name.startswith(ledger.PERF_PREFIX)]
        assert {name: a.metrics[name] for name in names} == {name: b.metrics[name] for name in names}
        assert a.stress_table == b.stress_table
        assert a.tags[ledger.TAG_CONFIG_HASH] == b.tags[ledger.TAG_CONFIG_HASH]
    assert read_run(first, store_uri).stress_table != read_run(second, store_uri).stress_table


def test_only_what_preparation_reads_asks_for_another_one(small_scale, store_uri, monkeypatch):
    scale, made = small_scale(store_uri), []
    monkeypatch.setattr("cedkv.tuner.runs.prepare", lambda *wanted: made.append(wanted) or _experiment)
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Experiment:
        config: object = None
        bank: object = None

    _experiment = Experiment()
    runner = Runner(kept=1)
    for changes in ({}, {ETA: 1.0}, {"phase3.memory.slots": 2}, {"phase3.memory.slots": 2, ETA: 2.0}, {}):
        runner._prepare(scale.config(changes), 3, Clock(), ALONE)
    assert len(made) == 3
    config = scale.config({})
    assert what_is_prepared(config, 2) != what_is_prepared(config, 3)
    assert what_is_prepared(config, 3) != what_is_prepared(scale.config({}, seed=1), 3)


@pytest.mark.slow
def test_a_trial_among_the_worst_is_ended_there(run_study, store_uri):
    space = {"pruning": {"keep": 0.1, "after_trials": 2, "after_share": 0.5}}
    study = run_study(store_uri, trials=5, space=space)
    pruned = [trial for trial in study.trials() if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        (run_id,) = trial.user_attrs[studies.RUNS]
        run = read_run(run_id, store_uri)
        assert run.status == "KILLED"
        assert "pruned at step" in run.tags[ledger.TAG_ERROR]
        ticks = metric_history(run_id, [ledger.P99_STRESS], store_uri)[ledger.P99_STRESS]
        assert 6 <= ticks[-1].step < 12  # it was given its share, and not the rest
    assert not (Path(store_uri.removeprefix("sqlite:///")).parent / "checkpoints").exists()


def test_a_dead_controller_loses(run_study, store_uri):
    """A step of λ so small that it stands still has the smallest swing of all, and still loses."""
    space = {
        "space": {ETA: {"choices": [0.05, 1e-6]}},
        "objective": {"dual/lambda_std": 1.0},
        "constraints": {"dual/tracking": {"least": 0.001}},
    }
    study = run_study(store_uri, trials=4, space=space)
    worth = {trial.params[ETA]: studies.score_of(trial) for trial in study.trials()}
    assert worth[1e-6].objective == min(one.objective for one in worth.values())
    assert not worth[1e-6].feasible
    best = studies.ranked(study.trials())[0][0]
    assert best.params[ETA] != 1e-6
    assert f"eta: {best.params[ETA]}" in study.found.best


@pytest.mark.slow
def test_settings_that_are_none_cost_one_trial_and_not_the_study(run_study, store_uri):
    space = {
        "space": {
            "phase3.memory.slots": {"choices": [3, 2]},
            "phase3.memory.sink_slots": {"choices": [0, 500]},
        }
    }
    study = run_study(store_uri, trials=4, space=space)
    spoiled = [trial for trial in study.trials() if trial.params["phase3.memory.sink_slots"] == 500]
    assert spoiled
    assert all(
        trial.state is TrialState.PRUNED and "sink" in trial.user_attrs[studies.ENDED] for trial in spoiled
    )
    assert study.found.best is not None


@pytest.mark.slow
def test_where_nothing_keeps_its_constraints_no_configuration_is_written(run_study, store_uri):
    study = run_study(store_uri, trials=1, space={"constraints": {"on_gain": {"least": 2.0}}})
    assert study.found.best is None
    assert "breaks on_gain" in study.found.table


@pytest.mark.parametrize("signal", [pytest.param(KeyboardInterrupt, marks=pytest.mark.slow), SystemExit])
def test_a_trial_that_is_interrupted_is_run_again(run_study, store_uri, monkeypatch, signal):
    class Once:
        asked = False

        def __call__(self, *_: object) -> None:
            if not Once.asked:
                Once.asked = True
                raise signal(143)

    monkeypatch.setattr("cedkv.tuner.worker._Watcher.__call__", lambda *_: Once()())
    with pytest.raises(signal):
        run_study(store_uri, trials=1)
    study = run_study(store_uri, trials=1)
    states = [trial.state for trial in study.trials()]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials()[1].params == study.plan.current
    assert len([run for run in children(study) if run.status in {"KILLED", "FAILED"}]) == 1


def test_a_mistake_in_the_current_configuration_ends_the_worker(run_study, store_uri, monkeypatch):
    def refuse(*_: object, **__: object) -> str:
        raise UserError("no such model")

    monkeypatch.setattr(Runner, "run", refuse)
    with pytest.raises(UserError, match="no such model"):
        run_study(store_uri, trials=2)


@pytest.mark.slow
def test_a_configuration_that_is_edited_while_its_study_runs_ends_the_worker(
    run_study, small_scale, store_uri, monkeypatch
):
    loaded = type(small_scale(store_uri)).config
    count = []

    def config(self, changes, *given, **named):
        count.append(1)
        edited = {"phase3.train.on_batch": 3} if len(count) > 12 else {}
        return loaded(self, {**changes, **edited}, *given, **named)

    monkeypatch.setattr(type(small_scale(store_uri)), "config", config)
    with pytest.raises(UserError, match="was begun with another configuration"):
        run_study(store_uri, trials=9)


def test_stopped_is_no_failure_of_the_writer(small_scale, store_uri):
    scale = small_scale(store_uri)

    def stop(*_: object) -> None:
        raise StoppedError("enough")

    opened: list[str] = []
    with pytest.raises(StoppedError):
        Runner(kept=1).run(scale.config({}), 3, tags={}, opened=opened.append, watch=stop)
    run = read_run(opened[0], store_uri)
    assert (run.status, run.tags[ledger.TAG_ERROR]) == ("KILLED", "enough")


@pytest.mark.slow
def test_the_sampler_learns_from_scores_first_and_from_what_was_ended_last(run_study, store_uri):
    """Where nothing keeps its constraints, trials without a score would else be taken for the best."""
    from optuna.samplers._tpe.sampler import _split_infeasible_trials

    space = {
        "constraints": {"on_gain": {"least": 2.0}, "off_delta_p99_stress": {"most": 1e-9}},
        "pruning": {"keep": 0.1, "after_trials": 2, "after_share": 0.5},
    }
    trials = run_study(store_uri, trials=5, space=space).trials()
    pruned = [trial.number for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned
    good, bad = _split_infeasible_trials(trials, len(trials) - len(pruned))
    assert [trial.number for trial in bad] == pruned
    assert {trial.number for trial in good} == {trial.number for trial, _ in studies.ranked(trials)}
