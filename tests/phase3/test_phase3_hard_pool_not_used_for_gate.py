"""The hard pool feeds the OFF loss and nothing else; the gate reads the fixed stress eval and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.core.verdict import Status
from cedkv.evaluate import stress
from cedkv.release.gates import judge
from cedkv.tracking.reader import metric_history, read_run
from cedkv.train import experiment as preparation
from cedkv.train import loop
from cedkv.train.loop import Trainer
from cedkv.train.main import run_training

LENIENT = "phase3.thresholds.off_delta_p99_max=2.0"
# λ is held, so that what is measured cannot reach what is trained.
PINNED = "phase3.train.lambda_off.dual={lambda_min: 2.0, lambda_max: 2.0}"
LOSSES = (ledger.LOSS, ledger.LOSS_ON, ledger.LOSS_OFF, ledger.LOSS_STR)
GATED = (
    *(ledger.P99_STRESS, ledger.P99_TYPICAL, ledger.MEAN_STRESS, ledger.MAX_STRESS),
    *(ledger.P99_RAW, ledger.P99_EMA, ledger.LAMBDA_OFF, ledger.WARN_CONSECUTIVE),
)


@pytest.fixture(scope="module")
def logged_run(small_config, store_template, tmp_path_factory):
    """Trains with a logged run; gives its record and the histories of its losses and of what gates read."""
    path = tmp_path_factory.mktemp("hard-pool") / "mlflow.db"
    path.write_bytes(store_template.read_bytes())
    uri = f"sqlite:///{path}"

    def train():
        run_id = run_training(small_config(LENIENT, PINNED, f"tracking.uri={uri}"), phase=3, progress=False)
        history = metric_history(run_id, (*LOSSES, *GATED), uri)
        values = {name: [(point.step, point.value) for point in points] for name, points in history.items()}
        return read_run(run_id, uri), values

    return train


@pytest.fixture(scope="module")
def clean_run(logged_run):
    return logged_run()


def poison_pool_values(monkeypatch):
    mine = loop.mine

    def poisoned(*args, **options):
        pool = mine(*args, **options)
        return replace(pool, deltas=tuple(1e9 for _ in pool.deltas))

    monkeypatch.setattr(loop, "mine", poisoned)


def poison_fixed_set(monkeypatch):
    def poisoned(*args, **options):
        result = stress(*args, **options)
        return replace(result, kl=result.kl + 5.0)

    monkeypatch.setattr(loop, "stress", poisoned)


# ------------------------------------------------------------------------------------------------- the pool's values
def test_enormous_values_in_the_hard_pool_reach_no_metric_no_table_and_no_gate(
    clean_run, logged_run, monkeypatch
):
    clean, before = clean_run
    poison_pool_values(monkeypatch)
    poisoned, after = logged_run()
    assert before == after
    assert all(before[name] for name in (*LOSSES, *GATED))
    assert poisoned.stress_table == clean.stress_table
    numbers = {name: value for name, value in clean.metrics.items() if not name.startswith("perf/")}
    assert numbers == pytest.approx(
        {name: poisoned.metrics[name] for name in numbers}, rel=0, abs=0, nan_ok=True
    )
    verdicts = [replace(judge(run), run_id="", run_name="") for run in (clean, poisoned)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].gate_b is Status.PASS


def test_a_poisoned_fixed_set_fails_gate_b_and_moves_no_loss_and_no_memory(
    clean_run, logged_run, monkeypatch
):
    """With λ held, nothing that is trained may depend on what was measured on the fixed set."""
    clean, before = clean_run
    poison_fixed_set(monkeypatch)
    poisoned, after = logged_run()
    for name in LOSSES:
        assert before[name] == after[name]
    assert [judge(run).gate_b for run in (clean, poisoned)] == [Status.PASS, Status.FAIL]
    for name in (ledger.P99_STRESS, ledger.MAX_STRESS, ledger.MEAN_STRESS):
        assert poisoned.metrics[name] == pytest.approx(clean.metrics[name] + 5.0)
    assert poisoned.on_table == clean.on_table


def test_other_prompts_in_the_pool_move_the_off_loss_but_not_the_first_measurement(
    clean_run, logged_run, monkeypatch
):
    _, before = clean_run
    mine = loop.mine

    def easiest(model, states, prompts, size, **options):
        everything = mine(model, states, prompts, len(prompts), **options)
        return replace(everything, indices=everything.indices[-size:], deltas=everything.deltas[-size:])

    monkeypatch.setattr(loop, "mine", easiest)
    _, after = logged_run()
    assert after[ledger.LOSS_OFF][0][1] < before[ledger.LOSS_OFF][0][1]
    assert after[ledger.LOSS_ON][0] == before[ledger.LOSS_ON][0]
    for name in GATED:
        assert after[name][0] == before[name][0]


# ---------------------------------------------------------------------------------------------------- the minibatches
@pytest.fixture
def off_batches(small_experiment, monkeypatch):
    """Trains a small run; gives its trainer and, for every step, the OFF minibatch and the pool it came from."""

    def train(*overrides: str):
        class Nowhere:
            def log_metrics(self, metrics, step):
                pass

        trainer = Trainer(small_experiment(*overrides), Nowhere(), warn=lambda _: None)
        compute, seen = loop.loss_terms, []

        def watched(*args, off, **options):
            seen.append((off, trainer.pool.indices))
            return compute(*args, off=off, **options)

        monkeypatch.setattr(loop, "loss_terms", watched)
        trainer.run()
        return trainer, seen

    return train


def test_every_off_minibatch_comes_from_the_current_hard_pool(off_batches):
    trainer, seen = off_batches()
    stress_prompts = set(trainer.stress_prompts)
    assert len(seen) == 12
    for batch, pool in seen:
        assert len(batch) == len(set(batch)) == 4
        assert set(batch) <= {trainer.off[i] for i in pool}
        assert stress_prompts.isdisjoint(batch)
    assert len({frozenset(batch) for batch, _ in seen}) > 3


def test_only_debug_may_train_on_the_fixed_set_and_then_the_loss_is_of_that_set(off_batches, small_config):
    source = "phase3.loss.off.train_source=fixed_stress_eval"
    with pytest.raises(UserError, match=r"phase3\.loss\.off\.train_source"):
        small_config(source)
    trainer, seen = off_batches(source, "phase3.runtime.policy_mode=debug")
    assert all(set(batch) <= set(trainer.stress_prompts) for batch, _ in seen)


def test_the_pool_is_mined_from_the_off_training_prompts_only(off_batches, monkeypatch):
    mine, searched = loop.mine, []

    def watched(model, states, prompts, *args, **options):
        searched.append(list(prompts))
        return mine(model, states, prompts, *args, **options)

    monkeypatch.setattr(loop, "mine", watched)
    trainer, _ = off_batches()
    training = [row.prompt for row in trainer.experiment.encoded.off_train]
    assert searched == [training] * 3
    assert set(training).isdisjoint(trainer.stress_prompts)


# ---------------------------------------------------------------------------------------------------- the sealed set
def test_no_sealed_prompt_is_ever_shown_to_the_model(small_config, store_uri, monkeypatch):
    shown: set[tuple[int, ...]] = set()
    corpora = []
    load_model, build_corpus = preparation.load_model, preparation.build_corpus

    def record(_, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        keep = torch.ones_like(ids) if mask is None else mask
        shown.update(tuple(row[use.bool()].tolist()) for row, use in zip(ids, keep, strict=True))

    def watched(*args, **options):
        loaded = load_model(*args, **options)
        loaded.model.register_forward_pre_hook(record, with_kwargs=True)
        return loaded

    monkeypatch.setattr(preparation, "load_model", watched)
    monkeypatch.setattr(preparation, "build_corpus", lambda c: corpora.append(build_corpus(c)) or corpora[-1])
    config = small_config(f"tracking.uri={store_uri}", "phase3.train.steps=5")
    run_training(config, phase=3, progress=False)
    encode = load_model(config.model_source, device="cpu").tokenizer
    sealed, stressed = (
        {tuple(encode(row.prompt)["input_ids"]) for row in rows}
        for rows in (corpora[0].sealed, corpora[0].stress)
    )
    assert stressed <= shown
    assert len(sealed) == 16
    assert sealed.isdisjoint(shown)
