"""The loop: what it trains on, when it measures, what it does about what it finds."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cedkv import ledger
from cedkv.core.dual import cancelling_gain
from cedkv.core.losses import kl_divergence
from cedkv.core.stats import order_statistic_quantile
from cedkv.evaluate import StressResult, stress
from cedkv.injection import inject
from cedkv.memory.bank import MemoryBank
from cedkv.train import keep, loop
from cedkv.train.hard_pool import mine
from cedkv.train.keep import Keeper, fixed_on_loss
from cedkv.train.loop import ConstraintViolatedError, Trainer

STRICT = "phase3.thresholds.off_delta_p99_max=1e-6"
"""A limit every measurement breaks."""


@pytest.fixture
def trainer(small_experiment):
    """Makes a trainer that logs nowhere."""

    class Nowhere:
        def log_metrics(self, metrics, step):
            pass

    def make(*overrides: str) -> Trainer:
        return Trainer(small_experiment(*overrides), Nowhere(), warn=lambda _: None)

    return make


# ---------------------------------------------------------------------------------------------------- top-k schedule
def test_the_schedule_decides_how_many_candidates_are_really_mixed(trainer, monkeypatch):
    found: list[tuple[int, int]] = []
    computed = MemoryBank.mixture

    def watched(bank, k, rows=None):
        result = computed(bank, k, rows)
        found.append((step, int((result.weights > 0).sum(-1).max())))
        return result

    made = trainer()
    monkeypatch.setattr(MemoryBank, "mixture", watched)
    step = 0

    def count(done):
        nonlocal step
        step = done + 1

    made.run(count)
    expected = (
        [12] * 3 + [6] * 5 + [4] * 3 + [2] * 2
    )  # 12 steps, stages at 0, 0.25, 0.6 and 0.85; then the last tick
    assert {(at, k) for at, k in found} == set(enumerate(expected))
    assert made.traces.topk == [
        {"step": at, "topk": k} for at, k in zip((0, 3, 8, 11), (12, 6, 4, 2), strict=True)
    ]


def test_anchors_and_their_keys_never_move(trainer):
    made = trainer()
    anchors, before = made.bank.anchors.clone(), made.bank.states(2).detach()
    made.run()
    after = made.bank.states(2)
    assert torch.equal(made.bank.anchors, anchors)
    assert all(torch.equal(before.keys[i], after.keys[i]) for i in after.layers)
    assert any(not torch.equal(before.values[i], after.values[i]) for i in after.layers)


def test_how_much_of_the_values_is_no_mixture_is_logged_at_every_tick(train_small):
    shares = train_small("phase3.mix.value_residual=learned").log.of(ledger.RESIDUAL_SHARE)
    assert [step for step, _ in shares] == [0, 5, 10, 12]
    assert shares[0][1] == 0.0
    assert all(0 < share < 1 for _, share in shares[1:])
    assert not train_small().log.of(ledger.RESIDUAL_SHARE)


# --------------------------------------------------------------------------------------------------- what is trained
def test_alone_the_on_loss_of_all_prompts_falls_at_every_step(trainer):
    quiet = (
        "phase3.loss.lambda_off=0",
        "phase3.train.lambda_off.dual.lambda_max=0",
        "phase3.loss.lambda_str=0",
    )
    made = trainer(
        *quiet,
        "phase3.train.topk_schedule=[12]",
        "phase3.train.topk_milestones=[0]",
        "phase3.train.on_batch=27",
        "phase3.train.lr=0.5",
        "phase3.train.steps=20",
    )
    made.run()
    losses = [row[ledger.LOSS_ON] for row in made.traces.loss]
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.95 * losses[0]


def test_training_changes_no_weight_of_the_model(trainer):
    made = trainer()
    before = {name: p.clone() for name, p in made.model.state_dict().items()}
    made.run()
    assert all(torch.equal(p, before[name]) for name, p in made.model.state_dict().items())


def test_the_same_seed_gives_the_same_run_bit_for_bit(train_small, trainer):
    first, second = train_small(), trainer()
    outcome = second.run()
    assert first.trainer.traces == second.traces
    assert torch.equal(first.trainer.bank.logits, second.bank.logits)
    assert torch.equal(first.outcome.stress.kl, outcome.stress.kl)


def test_another_seed_gives_other_minibatches(train_small):
    first, second = train_small(), train_small("phase3.train.seed=1")
    assert first.trainer.traces.loss[0] != second.trainer.traces.loss[0]
    assert first.trainer.traces.dual[0] == second.trainer.traces.dual[0]  # nothing was trained yet


def test_the_order_of_off_prompts_does_not_move_with_the_on_prompts(trainer, monkeypatch):
    def orders(*overrides: str) -> list[list[int]]:
        made, seen = trainer(*overrides), []
        draw = made._off_batch

        def watched():
            batch = draw()
            seen.append([made.pool.indices.index(made.off.index(prompt)) for prompt in batch])
            return batch

        monkeypatch.setattr(made, "_off_batch", watched)
        made.run()
        return seen

    assert orders() == orders("data.on_train_prompts_per_fact=2", "phase3.train.on_batch=2")


@pytest.mark.parametrize(
    "settings",
    [
        ("phase3.mix.mode=kv", "phase3.mix.share=layer"),
        ("phase3.mix.share=head", "phase3.memory.sink_slots=2"),
        ("phase3.layer_scope={mixture: top25, injection: all}", "phase3.loss.on.type=answer_nll"),
        ("data.repeat_bos=false", "data.document_separator=' '"),
        ("phase3.eval.batch_rows=1", "phase3.candidate.atom_types=[content, value]"),
    ],
    ids=lambda settings: settings[0].rpartition(".")[2],
)
def test_every_setting_trains_and_its_teacher_is_met_by_the_whole_document(train_small, settings):
    run = train_small("phase3.train.steps=3", *settings)
    assert run.trainer.experiment.teacher_cache_max_kl < 1e-6
    assert all(math.isfinite(row[name]) for row in run.trainer.traces.loss for name in row)
    assert run.log.of(ledger.NONFINITE_STEPS)[-1][1] == 0
    assert all(norm > 0 for _, norm in run.log.of(ledger.GRAD_NORM))
    assert all(0 < mass < 1 for _, mass in run.log.of(ledger.SLOT_MASS_ON) + run.log.of(ledger.SLOT_MASS_OFF))


# ---------------------------------------------------------------------------------------------------------- hard pool
def test_the_pool_holds_the_hardest_training_prompts_hardest_first(trainer):
    made = trainer()
    pool = mine(made.model, made.bank.states(12), made.off, 6, batch_rows=64)
    delta = stress(made.model, made.bank.states(12), made.off, batch_rows=64).delta.tolist()
    by_hand = sorted(range(12), key=lambda u: -delta[u])[:6]
    assert list(pool.indices) == by_hand
    assert list(pool.deltas) == [delta[u] for u in by_hand]


@pytest.mark.parametrize(("refresh", "steps"), [("5", [0, 5, 10]), ("4", [0, 4, 8]), ("100", [0])])
def test_the_pool_is_mined_again_every_so_many_steps_with_the_current_memory(
    trainer, monkeypatch, refresh, steps
):
    made, mined = trainer(f"phase3.train.hard_pool_refresh={refresh}"), []

    def watched(model, states, *args, **options):
        mined.append((len(made.traces.loss), states.values[2].clone()))
        return mine(model, states, *args, **options)

    monkeypatch.setattr(loop, "mine", watched)
    made.run()
    assert [at for at, _ in mined] == steps
    assert all(not torch.equal(a, b) for (_, a), (_, b) in pairwise(mined))


# --------------------------------------------------------------------------------------------------- numbers that fail
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(trainer, monkeypatch, what):
    made = trainer()
    compute, seen = loop.loss_terms, []

    def broken(*args, **options):
        terms = compute(*args, **options)
        if len(seen) - 1 == 2:
            bad = terms.on * math.nan if what == "loss" else _nan_gradient(terms.on)
            return replace(terms, on=bad)
        return terms

    monkeypatch.setattr(loop, "loss_terms", broken)
    metrics: list[dict[str, float]] = []
    made.log = type("Log", (), {"log_metrics": lambda _, found, step: metrics.append(found)})()
    seen.append(made.bank.logits.detach().clone())
    made.run(lambda _: seen.append(made.bank.logits.detach().clone()))
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True, True, False, *[True] * 9]
    assert [m[ledger.NONFINITE_STEPS] for m in metrics if ledger.LOSS in m] == [0, 0, *[1] * 10]
    assert made.bank.logits.isfinite().all()
    assert math.isnan(made.traces.loss[2][ledger.LOSS]) == (what == "loss")


def _nan_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same value; its gradient is 0 · inf."""
    return loss + (loss - loss.detach()).clamp_min(0).sqrt() * 0.0


def test_a_measurement_that_is_not_finite_leaves_lambda_alone_and_proves_no_feasibility(trainer, monkeypatch):
    made = trainer("phase3.thresholds.off_delta_p99_max=100")

    def broken(*args, **options):
        result = stress(*args, **options)
        result.kl[0, 0] = math.nan
        return result

    monkeypatch.setattr(loop, "stress", broken)
    made.run()
    assert {row["lambda_off"] for row in made.traces.dual} == {2.0}
    assert all(math.isnan(row["p99_raw"]) for row in made.traces.dual)
    assert made.keeper.best is None


# ---------------------------------------------------------------------------------------------------------- eval ticks
def test_the_stress_set_is_measured_at_every_tick_and_at_the_end(train_small):
    run = train_small()
    assert [step for step, _ in run.log.of(ledger.P99_STRESS)] == [0, 5, 10, 12]
    assert run.outcome.step == 12
    assert run.log.of(ledger.P99_STRESS)[-1][1] == order_statistic_quantile(run.outcome.stress.delta.tolist())


def test_the_log_gets_what_the_traces_hold(train_small):
    run = train_small()
    traces = run.trainer.traces
    for name in (ledger.LOSS, ledger.LOSS_ON, ledger.LOSS_OFF, ledger.LOSS_STR):
        assert run.log.of(name) == [(row["step"], row[name]) for row in traces.loss]
    for name in (ledger.P99_RAW, ledger.P99_EMA):
        assert run.log.of(name) == [(row["step"], row[name]) for row in traces.dual]
    delimiters = [(row["step"], row["delimiter_slot_max"]) for row in traces.mass]
    assert run.log.of(ledger.DELIMITER_SLOT_MAX) == delimiters
    for kind in ledger.ATOM_TYPES:
        assert run.log.of(ledger.atom_mass(kind)) == [(row["step"], row[kind]) for row in traces.mass]
    for row in traces.mass:
        assert sum(row[kind] for kind in ledger.ATOM_TYPES) == pytest.approx(1.0, abs=1e-5)
        assert row["delimiter_slot_max"] <= 0.15 + 1e-6
    assert run.log.of(ledger.EFFECTIVE_POPULATION_TAIL)[0][1] == pytest.approx(0.2 * 6 / 12)
    weighted = [
        row[ledger.LOSS_ON] + lambda_off * row[ledger.LOSS_OFF] + 0.1 * row[ledger.LOSS_STR]
        for row, lambda_off in zip(traces.loss, _lambda_by_step(traces.dual), strict=True)
    ]
    assert weighted == pytest.approx([row[ledger.LOSS] for row in traces.loss], rel=1e-5)


def _lambda_by_step(dual) -> list[float]:
    return [
        max((row for row in dual if row["step"] <= step), key=lambda row: row["step"])["lambda_off"]
        for step in range(12)
    ]


# -------------------------------------------------------------------------------------------------- constraint warnings
def constraint(action: str, patience: int = 2, *more: str) -> tuple[str, ...]:
    return (
        STRICT,
        f"phase3.train.constraint_warn.action={action}",
        f"phase3.train.constraint_warn.patience_eval_ticks={patience}",
        *more,
    )


def test_warn_says_so_once_and_goes_on(train_small):
    run = train_small(*constraint("warn"))
    assert len(run.warnings) == 1
    assert "step 5: off_delta_p99_stress" in run.warnings[0]
    assert "over its limit 1e-06 for 2 eval ticks, confirmed by plain forward passes" in run.warnings[0]
    assert run.outcome.step == 12
    trace = run.trainer.traces.warn
    assert [row["consecutive"] for row in trace] == [1, 2, 3, 4]
    assert [row["triggered"] for row in trace] == [False, True, True, True]
    assert [row["verified"] is not None for row in trace] == [False, True, False, False]
    assert trace[1]["verified"] == pytest.approx(trace[1]["value"], rel=1e-4)
    assert run.log.of(ledger.WARN_TRIGGERED) == [(0, False), (5, True), (10, True), (12, True)]
    assert run.log.of(ledger.WARN_CONSECUTIVE) == [(0, 1), (5, 2), (10, 3), (12, 4)]


def test_the_verified_value_comes_from_plain_forward_passes_of_the_whole_set(trainer, monkeypatch):
    made, calls = trainer(*constraint("warn")), []

    def watched(model, states, prompts, *, batch_rows, plain=False):
        calls.append((plain, len(prompts)))
        return stress(model, states, prompts, batch_rows=batch_rows, plain=plain)

    monkeypatch.setattr(loop, "stress", watched)
    made.run()
    assert [size for plain, size in calls if plain] == [24]


def test_abort_ends_the_run_with_an_error(trainer):
    made = trainer(*constraint("abort"))
    with pytest.raises(ConstraintViolatedError, match="step 5: off_delta_p99_stress"):
        made.run()
    assert len(made.traces.loss) == 5
    assert made.traces.warn[-1]["triggered"]


def test_early_stop_without_a_feasible_memory_keeps_the_last_one(trainer):
    made = trainer(*constraint("early_stop"))
    outcome = made.run()
    assert (outcome.step, outcome.k) == (5, 6)
    assert torch.equal(
        outcome.stress.kl, stress(made.model, made.bank.states(6), made.stress_prompts, batch_rows=256).kl
    )


LOOSE = "phase3.thresholds.off_delta_p99_max=0.5"
"""A limit every measurement keeps, until a test says otherwise."""


def spoiled(made, monkeypatch, *, broken_from: int):
    """Measurements from a step on break every limit; what was in the bank at each tick is remembered by its step."""
    memories = {}

    def measured(*args, **options):
        steps = len(made.traces.loss)
        memories.setdefault(steps, {name: p.detach().clone() for name, p in made.bank.named_parameters()})
        result = stress(*args, **options)
        over = 9.0 if steps >= broken_from and not made.keeper_restored else 0.0
        return StressResult(result.kl + over, result.base_top, result.student_top)

    made.keeper_restored = False
    restore = made.keeper.restore

    def restored():
        made.keeper_restored = True
        return restore()

    monkeypatch.setattr(made.keeper, "restore", restored)
    monkeypatch.setattr(loop, "stress", measured)
    return memories


GATED, RESIDUAL = "phase3.mix.slot_gate=affine", "phase3.mix.value_residual=learned"


@pytest.mark.parametrize(("settings", "learned"), [((), 1), ((GATED,), 3), ((GATED, RESIDUAL), 5)])
@pytest.mark.parametrize("action", ["warn", "early_stop"])
def test_a_run_ends_with_the_best_feasible_memory(trainer, monkeypatch, action, settings, learned):
    """Feasible at the ticks of steps 0 and 5, then never again: of the two the later has the lower ON loss."""
    made = trainer(
        f"phase3.train.constraint_warn.action={action}",
        "phase3.train.constraint_warn.patience_eval_ticks=1",
        "phase3.train.gate_lr=0.2",
        "phase3.train.topk_schedule=[4,4,4,4]",
        "phase3.loss.lambda_off=0",
        "phase3.train.lambda_off.dual.lambda_max=0",
        LOOSE,
        *settings,
    )
    memories = spoiled(made, monkeypatch, broken_from=10)
    outcome = made.run()
    assert outcome.step == (10 if action == "early_stop" else 12)
    assert (outcome.kept.step, outcome.k) == (5, 4)
    assert outcome.kept.on_loss == fixed_on_loss(made.experiment, made.bank, 4, "kl")
    parameters = dict(made.bank.named_parameters())
    assert len(parameters) == learned
    for name, parameter in parameters.items():
        assert torch.equal(parameter, memories[5][name])
        assert not torch.equal(parameter, memories[10][name])
    assert torch.equal(
        outcome.stress.kl, stress(made.model, made.bank.states(4), made.stress_prompts, batch_rows=256).kl
    )


def test_the_last_memory_is_kept_where_that_is_asked_for(trainer, monkeypatch):
    made = trainer("phase3.train.keep=last", LOOSE)
    memories = spoiled(made, monkeypatch, broken_from=10)
    outcome = made.run()
    assert outcome.kept is None
    assert outcome.k == 2
    assert torch.equal(made.bank.logits, memories[12]["logits"])


def test_feasible_comes_first_then_the_lower_on_loss_and_of_equals_the_later(trainer):
    made = trainer()
    keeper = Keeper(made.bank, 0.05)
    for step, p99, on_loss, best in (
        (0, 0.06, 0.1, None),
        (5, 0.05, 3.0, 5),
        (10, 0.01, 4.0, 5),
        (15, 0.04, 3.0, 15),
        (20, math.nan, 1.0, 15),
        (25, 0.01, math.nan, 15),
        (30, 0.049, 2.0, 30),
    ):
        keeper.offer(step, 4, p99, on_loss)
        assert (keeper.best.step if keeper.best else None) == best


def test_the_on_loss_of_a_tick_is_that_of_training_prompts_one_by_one(trainer, monkeypatch):
    made = trainer()
    monkeypatch.setattr(keep, "SAMPLE", 5)
    count = len(made.experiment.encoded.on_train)
    chosen = [i * count // 5 for i in range(5)]
    losses = []
    for i in chosen:
        row = made.experiment.encoded.on_train[i]
        states = made.bank.states(4, torch.tensor([row.document]))
        with torch.no_grad(), inject(made.model, states):
            ids = torch.tensor([row.prompt + row.answer[:-1]])
            student = made.model(input_ids=ids).logits[0, -len(row.answer) :].log_softmax(-1)
        losses.append(kl_divergence(made.experiment.teacher_train[i], student).mean())
    found = fixed_on_loss(made.experiment, made.bank, 4, "kl")
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_an_unconfirmed_trigger_does_not_act(trainer, monkeypatch):
    made = trainer(*constraint("abort"))
    monkeypatch.setattr(made, "_verify", lambda step: 0.0)
    assert made.run().step == 12
    assert [row["verified"] for row in made.traces.warn] == [None, 0.0, None, None]


def test_only_every_nth_tick_is_looked_at(train_small):
    run = train_small(*constraint("warn", 2, "phase3.train.constraint_warn.eval_every=2"))
    assert [row["tick"] for row in run.trainer.traces.warn] == [0, 2]
    assert run.trainer.traces.warn[-1]["triggered"]


def test_a_margin_is_tolerated_and_a_disabled_watch_sees_nothing(train_small):
    tolerant = train_small(*constraint("abort", 1, "phase3.train.constraint_warn.margin=50"))
    assert [row["consecutive"] for row in tolerant.trainer.traces.warn] == [0, 0, 0, 0]
    blind = train_small(*constraint("abort", 1, "phase3.train.constraint_warn.enabled=false"))
    assert blind.trainer.traces.warn == []
    assert blind.outcome.step == 12


# ------------------------------------------------------------------------------------------------------------- outcome
def test_the_outcome_is_the_memory_that_was_trained_last(train_small):
    run = train_small()
    bank = run.trainer.bank
    again = stress(run.trainer.model, bank.states(2), run.trainer.stress_prompts, batch_rows=256)
    assert (run.outcome.step, run.outcome.k) == (12, 2)
    assert torch.equal(run.outcome.stress.kl, again.kl)


def test_the_dual_is_driven_as_the_settings_say(trainer):
    plain = trainer().rule
    assert (plain.gain_p, plain.setpoint_margin) == (0.0, 0.0)
    dual = "phase3.train.lambda_off.dual"
    damped = trainer(f"{dual}.controller=pi", f"{dual}.setpoint_margin=0.01").rule
    assert (damped.gain_p, damped.setpoint_margin) == (cancelling_gain(0.05, 0.9), 0.01)
    assert trainer(f"{dual}.controller=pi", f"{dual}.gain_p=0.3").rule.gain_p == 0.3
