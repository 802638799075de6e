"""Proxies: exact where they can be, held against the truth where they cannot, and used only as the settings say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cedkv import ledger
from cedkv.evaluate import stress
from cedkv.injection import inject
from cedkv.injection.ends import ends_of
from cedkv.injection.merge import own_attention
from cedkv.tracking.reader import metric_history, read_run
from cedkv.train.hard_pool import mine
from cedkv.train.loop import Trainer
from cedkv.train.loss_source import LossSource, Proxies
from cedkv.train.main import run_training
from cedkv.train.proxy import fitted_scale, proxy_off, proxy_off_of, recall, taken

GATED = "phase3.mix.slot_gate=affine"


@pytest.fixture
def trainer(small_experiment, nowhere):
    def make(*overrides: str) -> Trainer:
        return Trainer(small_experiment(*overrides), nowhere, warn=lambda _: None)

    return make


@pytest.fixture
def nowhere():
    class Nowhere:
        def log_metrics(self, metrics, step):
            pass

    return Nowhere()


PROMPTS = 6


@pytest.mark.parametrize("biased", [False, True])
def test_at_the_first_injected_layer_the_proxy_is_what_injection_does(model, tiny, biased):
    """For every family: the attention output of the real pass with slots against that without them."""
    layers = (model.config.num_hidden_layers - 1,)
    prompts = [tuple(tiny.tokens(n, seed=n).tolist()) for n in (3, 5, 5, 7, 8, 8)]
    memory = tiny.memory(model, 3, layers=layers)
    if biased:
        draw = torch.Generator().manual_seed(1)
        bias = torch.randn(3, model.config.num_attention_heads, memory.slots, generator=draw)
        memory = replace(memory, bias=dict.fromkeys(layers, bias))
    ends = ends_of(model, prompts, layers, rows=4)
    found = proxy_off(ends, memory)
    assert found.shape == (PROMPTS, 3)
    for u, prompt in enumerate(prompts):
        base = ends[layers[0]].out[u, 0].double()
        for n in range(3):
            after = attended(model, prompt, memory.select(torch.tensor([n])))
            wanted = (after.double() - base).square().sum() / base.square().sum()
            assert found[u, n].item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-7)
    rows = torch.tensor([2, 0, 1, 1, 0, 2])
    torch.testing.assert_close(
        proxy_off_of(ends, memory, rows), found[torch.arange(PROMPTS), rows], rtol=1e-4, atol=1e-6
    )


def attended(model, prompt, state) -> torch.Tensor:
    """Attention output [H, E] at the last position of the one layer that `state` is injected into."""
    seen = []
    with inject(model, state, observer=lambda call: seen.append(own_attention(call, 1))):
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    return seen[0].out[0, 0]


def test_nothing_injected_is_no_change(small_experiment):
    proxies, states = Proxies(small_experiment()), small_experiment().bank.states(4).detach()
    shut = replace(states, bias={i: torch.full(states.keys[i].shape[:3], -1e4) for i in states.layers})
    assert (proxy_off(proxies.stress, shut) == 0).all()
    assert (proxy_off(proxies.stress, states) > 0).all()


def test_the_teacher_is_the_model_with_the_document_in_front(small_experiment):
    """And a state that is the document's own attention output has no distance left."""
    experiment = small_experiment()
    on = Proxies(experiment).on
    layer = experiment.bank.spec.injection[0]
    for n, place in enumerate(on.places[:5]):
        row = experiment.encoded.on_train[place]
        context = experiment.encoded.contexts[row.document].ids
        ids = context + row.prompt[experiment.encoded.skipped :] + row.answer[:-1]
        ends = ends_of(experiment.model, [ids], (layer,), rows=1)
        where = (on.prompt == n).nonzero().flatten()
        torch.testing.assert_close(on.teacher[layer].out[where[-1]], ends[layer].out[0], atol=1e-5, rtol=1e-4)
    own = replace(on, bare=on.teacher)
    shut = experiment.bank.states(4).detach()
    shut = replace(shut, bias={i: torch.full(shut.keys[i].shape[:3], -1e4) for i in shut.layers})
    assert (own.values(shut) == 0).all()


@pytest.mark.parametrize("gate", [(), (GATED,)])
def test_terms_of_a_minibatch_are_those_of_its_prompts(trainer, gate):
    made = trainer(*gate)
    places = [7, 3, 11]
    states = made.bank.states(4)
    every = made.proxies.on.values(states)
    on = made.proxies.on_term(made.bank, 4, places)
    torch.testing.assert_close(on, every[places].mean())
    off = made.proxies.off_term(made.bank, 4, [5, 2, 9, 1], 0.5)
    worst = proxy_off(taken(made.proxies.off, [5, 2, 9, 1]), states.detach()).amax(1)
    torch.testing.assert_close(off.detach(), worst.topk(2).values.mean(), rtol=1e-4, atol=1e-7)
    (on + off).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in made.bank.parameters())


def test_a_tick_says_what_the_proxies_are_worth(train_small):
    run = train_small(GATED)
    stress_pairs = len(run.trainer.stress_prompts) * len(run.trainer.bank.documents)
    for name in (
        ledger.PROXY_OFF_SPEARMAN,
        ledger.PROXY_OFF_PEARSON,
        ledger.PROXY_ON_SPEARMAN,
        ledger.PROXY_RECALL,
    ):
        found = run.log.of(name)
        assert [step for step, _ in found] == [0, 5, 10, 12]
        assert all(-1 <= value <= 1 for _, value in found)
    last = [row for row in run.trainer.traces.proxy if row["step"] == 12]
    assert len(last) == stress_pairs  # few enough for all of them
    # The memory of the outcome is the last one (nothing is feasible): the table holds what is measured on it.
    kl = run.outcome.stress.kl
    proxy = proxy_off(run.trainer.proxies.stress, run.trainer.bank.states(2).detach())
    for row in last[::20]:
        assert row["kl"] == pytest.approx(kl[row["prompt"], row["state"]].item(), rel=1e-3, abs=1e-7)
        assert row["proxy"] == pytest.approx(proxy[row["prompt"], row["state"]].item(), rel=1e-3, abs=1e-7)
    assert kl.max().item() in {row["kl"] for row in last}


def test_auto_leaves_a_weak_proxy_for_good():
    source = LossSource("auto", 0.8)
    assert source.used == "proxy"
    for step, value, used in ((0, 0.8, "proxy"), (5, 0.79, "hf"), (10, 0.99, "hf")):
        source.observe(step, value)
        assert source.used == used
    assert source.left_at == 5
    unknown = LossSource("auto", -1.0)
    unknown.observe(0, math.nan)
    assert unknown.used == "hf"
    for name in ("hf", "proxy", "blend"):
        fixed = LossSource(name, 0.8)
        fixed.observe(0, -1.0)
        assert (fixed.used, fixed.left_at) == (name, None)


@pytest.mark.parametrize(
    ("settings", "passes", "proxies"),
    [
        (("phase3.loss.source=hf",), True, False),
        (("phase3.loss.source=proxy",), False, True),
        (("phase3.loss.source=blend",), True, True),
        (("phase3.loss.source=auto", "phase3.loss.proxy_min_spearman=-1"), False, True),
        (("phase3.loss.source=auto", "phase3.loss.proxy_min_spearman=1"), True, False),
    ],
)
def test_the_source_decides_what_is_computed(trainer, monkeypatch, settings, passes, proxies):
    from cedkv.train import loop

    made = trainer(GATED, "phase3.train.steps=2", *settings)
    ran = {"passes": 0, "proxies": 0}
    real, proxy = loop.loss_terms, made._proxy_terms

    def counted(*args, **options):
        ran["passes"] += 1
        return real(*args, **options)

    def counted_proxy(*args):
        ran["proxies"] += 1
        return proxy(*args)

    monkeypatch.setattr(loop, "loss_terms", counted)
    monkeypatch.setattr(made, "_proxy_terms", counted_proxy)
    before = made.bank.logits.detach().clone()
    made.run()
    assert ran == {"passes": 2 * passes, "proxies": 2 * proxies}
    assert not torch.equal(made.bank.logits, before)


def test_blend_is_the_share_of_both(trainer):
    made = trainer("phase3.loss.source=blend", "phase3.loss.blend=0.25")
    made.tick(0)
    made._mine(0)
    on, off = [1, 4, 6], made._off_batch()
    blended = made._terms(12, on, off)
    made.source = LossSource("hf", 0.8)
    real = made._terms(12, on, off)
    proxy_on, proxy_off_term = made._proxy_terms(12, on, off)
    torch.testing.assert_close(blended.on, 0.25 * real.on + 0.75 * proxy_on)
    torch.testing.assert_close(blended.off, 0.25 * real.off + 0.75 * proxy_off_term)


def test_a_proxy_in_nats_has_the_size_of_what_was_measured(trainer):
    made = trainer()
    truth = made.proxies.truth(made.bank, 12, 0, made.measured(12))
    result = made.measured(12)
    proxy = proxy_off(made.proxies.stress, made.bank.states(12).detach())
    logs = (result.kl.double().log() - (truth.scale.off * proxy).double().log()).mean()
    assert logs.item() == pytest.approx(0, abs=1e-4)
    assert fitted_scale(torch.zeros(3), torch.ones(3)) == 1.0


def test_preranking_measures_only_what_the_proxy_ranks_first(trainer, monkeypatch):
    from cedkv.train import hard_pool

    made = trainer(
        "phase3.loss.off.prerank=2", "phase3.loss.off.hard_pool_size=6", "phase3.train.off_batch=4"
    )
    measured = []

    def counted(model, states, prompts, **options):
        measured.append(len(prompts))
        return stress(model, states, prompts, **options)

    monkeypatch.setattr(hard_pool, "stress", counted)
    made._mine(0)
    assert measured == [12]
    ranked = made.proxies.ranked_off(made.bank, 12, 12)
    worst = proxy_off(made.proxies.off, made.bank.states(12).detach()).amax(1)
    assert ranked == worst.argsort(descending=True)[:12].tolist()
    assert set(made.pool.indices) <= set(ranked)
    states = made.bank.states(12).detach()
    whole = mine(made.model, states, made.off, 6, batch_rows=64, ranked=range(len(made.off)))
    assert whole == mine(made.model, states, made.off, 6, batch_rows=64)


def test_recall_counts_the_true_top_among_the_first():
    proxy, kl = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), torch.tensor([0.1, 0.9, 0.0, 0.8, 0.0])
    assert recall(proxy, kl, 2, 2) == 0.5
    assert recall(proxy, kl, 4, 2) == 1.0


def test_a_run_on_proxies_says_so_and_its_verdict_reads_none(small_config, store_uri):
    """Everything a gate judges comes from real passes, whatever trained the memory."""
    config = small_config(
        f"tracking.uri={store_uri}",
        "phase3.loss.source=auto",
        "phase3.loss.proxy_min_spearman=1",
        "phase3.train.steps=6",
    )
    run = run_training(config, phase=3, progress=False)
    record = read_run(run, store_uri)
    assert record.tags[ledger.TAG_SOURCE_LOSS] == "auto, hf from step 0"
    assert {
        point.value for point in metric_history(run, [ledger.PROXY_USED], store_uri)[ledger.PROXY_USED]
    } == {0.0}
    deltas = sorted(row.stress_delta for row in record.stress_table)
    assert record.metrics[ledger.P99_STRESS] == deltas[math.ceil(0.99 * len(deltas)) - 1]
    (file,) = Path(store_uri.removeprefix("sqlite:///")).parent.glob(f"**/{run}/**/{ledger.PROXY_SCATTER}")
    assert {row["step"] for row in map(json.loads, file.read_text().splitlines())} == {0, 5, 6}
