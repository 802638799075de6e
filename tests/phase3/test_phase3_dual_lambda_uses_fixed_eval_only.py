"""λ_off reads the fixed stress eval and nothing else, and moves at its own ticks only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.evaluate import stress
from cedkv.tracking.reader import metric_history
from cedkv.train import loop
from cedkv.train.loop import Trainer
from cedkv.train.main import run_training, tags_of

HUGE = 1e9
DEBUG = (
    "phase3.runtime.policy_mode=debug",
    "phase3.runtime.debug_allow_nonfixed_constraint_sources=true",
    "phase3.train.lambda_off.dual.metric_source=hard_pool",
)
LIMIT = "phase3.thresholds.off_delta_p99_max=0.14"
"""Between what a small run measures early and late."""


class Nowhere:
    def log_metrics(self, metrics, step):
        pass


@pytest.fixture
def dual_trace(small_experiment):
    """Trains a small run and gives the rows of its λ trace."""

    def train(*overrides: str) -> list[dict[str, float]]:
        trainer = Trainer(small_experiment(*overrides), Nowhere(), warn=lambda _: None)
        trainer.run()
        return trainer.traces.dual

    return train


@pytest.fixture
def poison_hard_pool(monkeypatch):
    """Every value that is mined with the hard pool becomes enormous; its prompts stay the same."""
    mine = loop.mine

    def poisoned(*args, **options):
        pool = mine(*args, **options)
        return replace(pool, deltas=tuple(delta + HUGE for delta in pool.deltas))

    return lambda: monkeypatch.setattr(loop, "mine", poisoned)


@pytest.fixture
def poison_fixed_set(monkeypatch):
    """Every measurement of the fixed stress set becomes 5 nats worse."""

    def poisoned(*args, **options):
        result = stress(*args, **options)
        return replace(result, kl=result.kl + 5.0)

    return lambda: monkeypatch.setattr(loop, "stress", poisoned)


def test_a_poisoned_hard_pool_leaves_the_whole_lambda_trace_as_it_was(
    train_small, dual_trace, poison_hard_pool
):
    clean = train_small().trainer.traces.dual
    poison_hard_pool()
    assert dual_trace() == clean
    assert [row["step"] for row in clean] == [0, 5, 10]


def test_a_poisoned_fixed_set_moves_lambda(train_small, dual_trace, poison_fixed_set):
    clean = train_small().trainer.traces.dual
    poison_fixed_set()
    poisoned = dual_trace()
    assert poisoned[0]["p99_raw"] == pytest.approx(clean[0]["p99_raw"] + 5.0)
    assert [row["delta"] for row in poisoned] == [0.1, 0.1, 0.1]
    assert [row["lambda_off"] for row in poisoned] == pytest.approx([2.1, 2.2, 2.3])
    # unpoisoned it moves, too, but by the measured excess over the threshold and far from the clip
    assert [row["delta"] for row in clean] == pytest.approx([0.05 * (row["p99_ema"] - 0.05) for row in clean])
    assert all(abs(row["delta"]) < 0.05 for row in clean)


def test_the_same_poison_does_move_a_dual_that_reads_the_hard_pool(train_small, dual_trace, poison_hard_pool):
    """Only debug can be told to read it; without this the first test could not fail."""
    clean = train_small(*DEBUG).trainer.traces.dual
    poison_hard_pool()
    poisoned = dual_trace(*DEBUG)
    assert clean[0]["lambda_off"] < 2.05
    assert poisoned[0]["p99_raw"] >= HUGE
    assert poisoned[0]["lambda_off"] == pytest.approx(2.1)


@pytest.mark.parametrize("drop", [0, 1])
def test_another_source_than_the_fixed_eval_is_refused_outside_debug(small_config, drop):
    with pytest.raises(UserError, match=r"dual\.metric_source"):
        small_config(*(DEBUG[:drop] + DEBUG[drop + 1 :]))


def test_the_tag_says_where_lambda_was_read(small_experiment):
    assert tags_of(small_experiment(), 3)[ledger.TAG_SOURCE_LAMBDA] == "fixed_stress_eval"
    assert tags_of(small_experiment(*DEBUG), 3)[ledger.TAG_SOURCE_LAMBDA] == "hard_pool"


def test_lambda_moves_at_multiples_of_update_every_only(train_small):
    """The run ends at step 10 with a measurement that is none of its ticks."""
    run = train_small(
        "phase3.train.steps=10",
        "phase3.train.lambda_off.dual.update_every=4",
        "phase3.thresholds.off_delta_p99_max=1e-9",
    )
    assert [step for step, _ in run.log.of(ledger.P99_STRESS)] == [0, 4, 8, 10]
    assert [row["step"] for row in run.trainer.traces.dual] == [0, 4, 8]
    assert [step for step, _ in run.log.of(ledger.P99_RAW)] == [0, 4, 8]
    by_step = dict(run.log.of(ledger.LAMBDA_OFF))
    moved = [step for step in range(1, 11) if by_step[step] != by_step[step - 1]]
    assert moved == [4, 8]
    assert by_step[0] != 2.0


def test_the_logged_trace_is_a_float64_replay_of_the_logged_p99(small_config, store_uri):
    rule = "phase3.train.lambda_off.dual={eta: 3.0, ema_beta: 0.6, update_every: 2, delta_clip: 0.01, lambda_min: 1.995}"
    config = small_config(
        rule, "phase3.train.hard_pool_refresh=5", "phase3.train.lr=0.5", LIMIT, f"tracking.uri={store_uri}"
    )
    run_id = run_training(config, phase=3, progress=False)
    names = (ledger.P99_RAW, ledger.P99_EMA, ledger.LAMBDA_OFF)
    history = metric_history(run_id, names, store_uri)
    raw = np.array([point.value for point in history[ledger.P99_RAW]], np.float64)
    ema, lambdas, average, lambda_off = [], [], None, np.float64(2.0)
    for value in raw:
        average = value if average is None else 0.6 * average + 0.4 * value
        lambda_off = np.clip(lambda_off + np.clip(3.0 * (average - 0.14), -0.01, 0.01), 1.995, 10.0)
        ema.append(average)
        lambdas.append(lambda_off)
    assert [point.step for point in history[ledger.P99_RAW]] == [0, 2, 4, 6, 8, 10, 12]
    assert len(set(lambdas)) > 4
    np.testing.assert_allclose([point.value for point in history[ledger.P99_EMA]], ema, rtol=1e-12)
    logged = {point.step: point.value for point in history[ledger.LAMBDA_OFF]}
    np.testing.assert_allclose([logged[step] for step in range(0, 13, 2)], lambdas, rtol=1e-12)
    (file,) = Path(store_uri.removeprefix("sqlite:///")).parent.glob(
        f"**/{run_id}/artifacts/{ledger.LAMBDA_TRACE}"
    )
    trace = json.loads(file.read_text())
    np.testing.assert_allclose([row["p99_raw"] for row in trace], raw, rtol=0)
    np.testing.assert_allclose([row["p99_ema"] for row in trace], ema, rtol=1e-12)
    np.testing.assert_allclose([row["lambda_off"] for row in trace], lambdas, rtol=1e-12)
