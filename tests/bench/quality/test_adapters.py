"""Adapters of all documents at once are peft's, cost at least cedkv's bytes, and are trained as Phase 3 is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from cedkv.bench.quality import adapters as ours
from cedkv.bench.quality import fit
from cedkv.bench.quality.identity import Kind, identity
from cedkv.bench.quality.setting import Setting
from cedkv.bench.quality.trained import start, tuning_setting
from cedkv.core.risk import cvar

pytest.importorskip("peft", reason="peft is not installed (extra: peers)")
KINDS: tuple[Kind, ...] = ("prefix", "cartridge", "lora")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def plan(setting: Setting, **changes: object) -> fit.Plan:
    made = fit.plan_of(setting.experiment, rate=0.05, off=True, documents=3)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_pefts_own_after_training_and_a_change_shows(
    setting: Setting, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cedkv.bench.quality.identity.ON", 2)
    monkeypatch.setattr("cedkv.bench.quality.identity.OFF", 4)
    found = start(setting, kind)
    fit.train(found, setting.material, plan(setting, steps=2))
    assert all(check.holds for check in identity(setting.experiment, found, kind))
    prompts = setting.experiment.stress.take(range(4))
    nobody = torch.zeros(4, dtype=torch.long)
    kl = fit.drift(found, setting.experiment, list(prompts), nobody, fit.bases(prompts))
    assert kl.min() > 1e-5  # there is something to agree about
    with changing(found):
        assert not any(check.holds for check in identity(setting.experiment, found, kind))


@contextmanager
def changing(adapters: ours.Adapters) -> Iterator[None]:
    """Within the block its passes are those of slightly other parameters than it shows to peft."""
    stock = type(adapters).logits

    def logits(self: ours.Adapters, *args: object) -> torch.Tensor:
        return 1.05 * stock(self, *args)  # type: ignore[arg-type]

    type(adapters).logits = logits  # type: ignore[method-assign]
    try:
        yield
    finally:
        type(adapters).logits = stock  # type: ignore[method-assign]


@pytest.mark.parametrize("budget", [1, 600, 5000])
def test_peers_take_at_least_the_bytes_and_not_a_slot_more_than_that_takes(
    setting: Setting, budget: int
) -> None:
    model = setting.experiment.model
    slots, rank = ours.slots_for(model, budget), ours.rank_for(model, budget)
    generator = torch.Generator().manual_seed(0)
    prefix = ours.random_prefix(model, 2, slots, generator)
    lora = ours.LowRank(model, 2, rank, generator)
    for adapters, count in ((prefix, slots), (lora, rank)):
        assert adapters.bytes >= budget
        assert adapters.bytes * (count - 1) < budget * count


def test_a_step_gives_every_document_its_prompts(setting: Setting) -> None:
    made = plan(setting)
    assert made.steps == setting.experiment.config.phase3.train.steps == 12
    assert made.on == round(setting.experiment.config.phase3.train.on_batch / 3) == 1
    on, off, whose = setting.material.draw(replace(made, on=4), torch.Generator().manual_seed(0))
    assert [setting.experiment.encoded.on_train[i].document for i in on] == [0] * 4 + [1] * 4 + [2] * 4
    assert whose == [0] * 4 + [1] * 4 + [2] * 4
    for n in range(3):
        hard = set(setting.material.hard[n].tolist())
        assert set(off[4 * n : 4 * n + 2]) <= hard
    no_off = setting.material.draw(replace(made, off_weight=0.0), torch.Generator().manual_seed(0))
    assert no_off[1:] == ([], [])


def test_it_takes_exactly_the_steps_it_is_given_and_learns(setting: Setting) -> None:
    taken: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    found = start(setting, "lora")
    places = range(len(setting.experiment.encoded.on_train))
    before = fit.add_on(found, setting.experiment, places)
    try:
        fit.train(found, setting.material, plan(setting, off_weight=0.0))
    finally:
        hook.remove()
    assert len(taken) == 12
    assert fit.add_on(found, setting.experiment, places) < before


def test_the_off_gradient_is_that_of_every_documents_cvar(setting: Setting) -> None:
    found, made = start(setting, "cartridge"), plan(setting, on=6, tail_fraction=0.4)
    experiment = setting.experiment
    _, off, whose = setting.material.draw(made, torch.Generator().manual_seed(1))
    fit.add_off(found, experiment, off, whose, made)
    gradient = next(iter(found.parameters())).grad
    assert gradient is not None
    prompts = experiment.off.take(off)
    kl = fit.drift(found, experiment, list(prompts), torch.tensor(whose), fit.bases(prompts))
    parts = [cvar(kl[torch.tensor(whose) == n], 0.4) for n in range(3)]
    (expected,) = torch.autograd.grad(made.off_weight * torch.stack(parts).sum(), list(found.parameters()))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_cartridges_start_where_pefts_helper_puts_them(setting: Setting) -> None:
    from copy import deepcopy

    from peft import initialize_kv_prefix_from_past_key_values

    from cedkv.bench import peers

    experiment = setting.experiment
    model = deepcopy(experiment.model)
    ids = torch.tensor([experiment.encoded.contexts[1].ids])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    found = start(setting, "cartridge")
    assert isinstance(found, ours.Slots)
    peer = peers.adapter(model, "cartridge", found.table.shape[1])
    expected = initialize_kv_prefix_from_past_key_values(peer, past_key_values=layers)
    torch.testing.assert_close(found.table[1].detach(), expected, rtol=1e-4, atol=1e-5)


def test_learning_rates_are_found_on_other_documents(setting: Setting) -> None:
    few = tuning_setting(setting)
    assert few.seed == setting.options.tuning.seed not in setting.options.seeds
    reported = {document.text for document in setting.experiment.corpus.documents}
    assert not reported & {document.text for document in few.experiment.corpus.documents}
    assert len(few.experiment.encoded.contexts) == 2
