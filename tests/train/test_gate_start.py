"""Gates start from what the model's own attention says, prompt by prompt."""

from __future__ import annotations

import math

import pytest
import torch

from cedkv import ledger
from cedkv.data.batching import pad_left
from cedkv.injection import inject
from cedkv.memory.gate import Seen, own_slots
from cedkv.train.gate_start import gate_start

GATED = "phase3.mix.slot_gate=affine"


def seen_in_place(experiment, rows, documents) -> list[Seen]:
    """By layer, what each prompt gives the slots of its document when they are injected: one pass for each prompt."""
    bank = experiment.bank
    gate, bank.gate = bank.gate, None
    states = bank.states(32).detach()
    bank.gate = gate
    sinks = bank.spec.sink_slots
    found: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {layer: [] for layer in states.layers}
    for prompt, document in zip(rows, documents, strict=True):

        def look(call) -> None:
            scores = call.scores(1)[0, :, 0]
            slots = scores[:, sinks : call.slots]
            rest = torch.cat([scores[:, :sinks], scores[:, call.slots :]], dim=1).logsumexp(1)
            found[call.layer].append((slots, rest))

        with torch.no_grad(), inject(experiment.model, states, torch.tensor([document]), look):
            experiment.model(**pad_left([prompt], experiment.model.device).inputs())
    return [Seen(*(torch.stack(x) for x in zip(*found[layer], strict=True))) for layer in states.layers]


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_start_holds_what_it_aims_at_in_the_models_own_attention(small_experiment, sinks):
    """Of OFF prompts none opens a gate of the first injected layer further than it may; there is no layer before it."""
    experiment = small_experiment(GATED, f"phase3.memory.sink_slots={sinks}")
    bank, aims = experiment.bank, experiment.config.phase3.warm_start.gate
    gain, bias = bank.gate.resolved()
    groups = bias.shape[2] // gain.shape[2]
    prompts = [row.prompt for row in experiment.encoded.off_train]
    for n in range(len(bank.documents)):
        first = seen_in_place(experiment, prompts, [n] * len(prompts))[0]
        odds = gain[n, 0].repeat_interleave(groups, 0) * first.score + bias[n, 0] - first.lse[..., None]
        torch.testing.assert_close(
            odds.amax(0), torch.full_like(odds[0], aims.off_log_odds), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("share", ["shared", "layer", "head"])
def test_a_documents_own_questions_are_seen_with_its_slots_injected(small_experiment, share):
    """The pivot of a slot lies between what its own questions and OFF prompts give it; recomputed one by one."""
    experiment = small_experiment(GATED, "phase3.mix.share=head", f"phase3.mix.k_anchor.share={share}")
    on = experiment.encoded.on_train
    off = [row.prompt for row in experiment.encoded.off_train]
    for n in range(len(experiment.bank.documents)):
        mine = [row for row in on if row.document == n]
        assert all(len(row.answer) == 1 for row in mine)
        seen = seen_in_place(experiment, [row.prompt for row in mine], [n] * len(mine))
        own = own_slots(seen, share, experiment.bank.gate.gain.shape[2])[0]
        top = seen_in_place(experiment, off, [n] * len(off))[0].score.amax(0)
        pivot = experiment.bank.gate.pivot[n, 0]
        for head in range(own.shape[1]):
            for slot in own[:, head].unique().tolist():
                wanted = (seen[0].score[own[:, head] == slot, head, slot].mean() + top[head, slot]) / 2
                torch.testing.assert_close(pivot[head, slot], wanted, atol=1e-3, rtol=1e-4)


def test_the_share_that_is_given_up_is_divided_among_the_slots(small_experiment):
    experiment = small_experiment(GATED)
    config, states = experiment.config, small_experiment().bank.states(32).detach()
    count = len(experiment.encoded.off_train)

    def start(share: float):
        warm = config.phase3.warm_start
        gate = warm.gate.model_copy(update={"off_share": share})
        phase3 = config.phase3.model_copy(update={"warm_start": warm.model_copy(update={"gate": gate})})
        changed = config.model_copy(update={"phase3": phase3})
        return gate_start(changed, experiment.model, experiment.encoded, states, sinks=0)

    slots = states.count * states.slots
    strict, loose = start(0.0), start(2 * slots / count)
    assert (loose.bias > strict.bias).any()
    assert torch.equal(start(0.49 * slots / count).bias, strict.bias)
    lowest = start(float(count * slots)).bias  # more than there are: the last one still counts
    assert (lowest >= loose.bias).all()


def test_identity_starts_as_if_there_were_no_gate(small_experiment):
    gated, plain = (
        small_experiment(*settings).bank.states(4)
        for settings in ((GATED, "phase3.warm_start.gate.start=identity"), ())
    )
    for layer in plain.layers:
        assert torch.equal(gated.keys[layer], plain.keys[layer])
        assert (gated.bias[layer] == 0).all()


def test_phase_2_has_no_gate(small_experiment, small_config):
    assert small_experiment(GATED, phase=2).bank.gate is None
    assert small_config(GATED, phase=2).phase3.mix.slot_gate == "none"


def test_phase_2_learns_no_residual(small_experiment, small_config):
    learned = "phase3.mix.value_residual=learned"
    assert list(small_experiment(learned).bank.residuals) == ["2", "3"]
    assert not small_experiment(learned, phase=2).bank.residuals
    assert small_config(learned, phase=2).phase3.mix.value_residual == "none"
    alone = small_config(learned, "phase3.mix.mode=anchor").phase3.mix  # something is trained
    assert (alone.mode, alone.value_residual) == ("anchor", "learned")


def test_a_run_whose_gates_know_too_little_says_so(small_config, store_uri, capsys):
    from cedkv.train.main import run_training

    run_training(small_config(GATED, f"tracking.uri={store_uri}", "phase3.train.steps=1"), phase=3)
    assert "raise phase3.eval.off_samples to" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "start"), [("bfloat16", "measured"), ("float16", "identity")])
def test_gates_start_and_learn_in_float32_on_a_model_in_half_precision(
    small_experiment, train_small, dtype, start
):
    settings = (f"phase3.warm_start.gate.start={start}", "phase3.train.steps=3")
    made = small_experiment(GATED, f"model.dtype={dtype}", *settings)
    before = {name: p.detach().clone() for name, p in made.bank.named_parameters()}
    assert {p.dtype for p in before.values()} == {torch.float32}
    trained = train_small(GATED, f"model.dtype={dtype}", *settings)
    assert [value for _, value in trained.log.of(ledger.NONFINITE_STEPS)] == [0.0] * 3
    assert all(math.isfinite(p99) for _, p99 in trained.log.of(ledger.P99_STRESS))
    for name, p in trained.trainer.bank.named_parameters():
        assert not torch.equal(p, before[name]), name
    if start == "measured":  # what 16 bits know of the scores is near what 32 know
        whole = small_experiment(GATED, *settings).bank.gate
        near = torch.isclose(made.bank.gate.bias, whole.bias, rtol=0.1, atol=0.5)
        assert near.float().mean() > 0.75  # gains are chosen from a grid: one step apart moves a bias, too
