"""A slot's key is chosen at warm start and stays: through real training the keys keep every bit while the values move."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.injection import capture
from cedkv.memory.export import Origin, read_memory, write_memory
from cedkv.train.loop import Trainer


class Silent:
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Nobody listens."""


def keys_of(trainer: Trainer, k: int) -> dict[int, Tensor]:
    return {layer: keys.clone() for layer, keys in trainer.bank.states(k).detach().keys.items()}


def values_of(trainer: Trainer) -> dict[int, Tensor]:
    """With all candidates, so that what moves is the mixture and not the number of candidates in it."""
    return {layer: values.clone() for layer, values in trainer.bank.states(12).detach().values.items()}


@pytest.mark.parametrize(
    ("share", "anchors"), [("shared", "shared"), ("layer", "shared"), ("head", "shared"), ("head", "head")]
)
def test_keys_keep_every_bit_through_training_while_values_move(small_experiment, share, anchors):
    """Twelve optimiser steps over all four stages of top-k, looked at after every one of them."""
    experiment = small_experiment(f"phase3.mix.share={share}", f"phase3.mix.k_anchor.share={anchors}")
    trainer = Trainer(experiment, Silent(), warn=lambda _: None)
    keys, values, anchors = keys_of(trainer, 12), values_of(trainer), trainer.bank.anchors.clone()
    stages = set()

    def look(step):
        k = trainer.k_at(step)
        stages.add(k)
        now, moved = keys_of(trainer, k), values_of(trainer)
        assert now.keys() == keys.keys()
        assert all(torch.equal(now[layer], keys[layer]) for layer in keys)
        assert torch.equal(trainer.bank.anchors, anchors)
        # [N, H, S]: the value of every slot of every document has left its place
        assert all(((moved[layer] - values[layer]).abs().amax(-1) > 1e-6).all() for layer in values)

    trainer.run(look)
    assert stages == {12, 6, 4, 2}


def test_only_the_mixture_logits_are_trained(small_experiment):
    experiment = small_experiment()
    model = experiment.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    constants = {name: tensor.clone() for name, tensor in experiment.bank.named_buffers()}
    trainer = Trainer(experiment, Silent(), warn=lambda _: None)
    trainer.run()
    assert [name for name, p in trainer.bank.named_parameters() if p.requires_grad] == ["logits"]
    gradient = trainer.bank.logits.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, constants[name]) for name, tensor in trainer.bank.named_buffers())
    held = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
    assert held == {id(trainer.bank.logits)}


@pytest.mark.parametrize("share", ["shared", "layer", "head"])
def test_the_key_is_that_of_the_atom_captured_at_the_recorded_position(small_experiment, share):
    experiment = small_experiment(f"phase3.mix.share={share}", f"phase3.mix.k_anchor.share={share}")
    bank, encoded = experiment.bank, experiment.encoded
    states = bank.states(4)
    for n, context in enumerate(encoded.contexts):
        atoms = capture(experiment.model, context.id, context.ids, context.types, encoded.skipped)
        for place, layer in enumerate(bank.spec.injection):
            for head in range(2):
                positions = bank.anchors[n, place if share != "shared" else 0, head if share == "head" else 0]
                assert len(set(positions.tolist())) == 3  # one slot, one anchor
                assert torch.equal(states.keys[layer][n, head], atoms.keys[layer][head, positions])
                assert all(
                    context.types[position] not in (None, "delimiter") for position in positions.tolist()
                )
        assert set(bank.anchor_layers[n]) <= set(bank.spec.injection)


def test_the_same_warm_start_chooses_the_same_anchors(small_experiment):
    """From the seed alone: preparing again, with other training settings, moves no anchor."""
    once, again = small_experiment(), small_experiment("phase3.train.lr=0.5")
    assert torch.equal(once.bank.anchors, again.bank.anchors)
    assert torch.equal(once.bank.candidates, again.bank.candidates)


def test_anti_steering_decides_the_anchors_once_and_is_not_read_again(small_experiment):
    """The OFF penalty on anchors is a matter of warm start: strong enough, it chooses other ones."""
    none = small_experiment("phase3.warm_start.anti_steer_strength=0.0")
    strong = small_experiment("phase3.warm_start.anti_steer_strength=5.0")
    assert not torch.equal(none.bank.anchors, strong.bank.anchors)


def test_anchors_are_written_as_chunk_layer_and_position(small_experiment, tmp_path):
    bank = small_experiment().bank
    tensors, described = write_memory(tmp_path, bank, 4, Origin("model", "configuration"))
    written = json.loads(described.read_text())["anchors"]
    assert written == [[{"chunk": 0, "layer": layer} for layer in d] for d in bank.anchor_layers]
    assert torch.equal(read_memory(tensors, described).anchors, bank.anchors)


def test_there_is_no_other_policy(small_config):
    assert small_config().phase3.mix.k_anchor.policy == "warm_start_fixed"
    with pytest.raises(UserError, match=r"phase3\.mix\.k_anchor\.policy"):
        small_config("phase3.mix.k_anchor.policy=learned")
