"""Checks at load that injection does what it says on this very model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cedkv.core.errors import UserError
from cedkv.injection.attention import AttentionCall, inject, observe
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules


def check_routed(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Refuse a model in which `layers` do not attend through the interface, or slots do not reach the logits.

    Two short forward passes: one counts the attention calls of each layer, one injects random slots.

    Raises:
        UserError: names the family, what was found and what to do.
    """
    family = model.config.model_type
    calls: dict[int, AttentionCall] = {}
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    everything = tuple(layer.index for layer in attention_modules(model).values())
    if not everything:
        raise UserError(
            f"model family {family!r} has no causal attention modules slots could join: use another family"
        )
    with torch.no_grad():
        base = model(input_ids=ids, use_cache=False).logits
        with observe(model, everything, lambda call: calls.__setitem__(call.layer, call)):
            model(input_ids=ids, use_cache=False)
        silent = [layer for layer in layers if layer not in calls]
        if silent:
            raise UserError(
                f"model family {family!r}: layers {silent} do not call transformers' attention interface, so slots would be "
                "ignored there: choose other layers in phase3.layer_scope or another family"
            )
        slots = _random_slots(model, {layer: calls[layer] for layer in layers})
        with inject(model, slots):
            moved = model(input_ids=ids, use_cache=False).logits
        again = model(input_ids=ids, use_cache=False).logits
    if torch.equal(moved, base):
        raise UserError(
            f"model family {family!r}: injected slots do not change the logits; use another family"
        )
    assert torch.equal(again, base), "leaving the injection must restore the model bitwise"


def _random_slots(model: PreTrainedModel, calls: dict[int, AttentionCall]) -> States:
    """Two slots a layer, of the size of the layer's own keys and values."""
    generator = torch.Generator().manual_seed(0)

    def like(x: Tensor) -> Tensor:
        shape = (1, x.shape[1], 2, x.shape[3])
        noise = torch.randn(shape, generator=generator).to(device=model.device, dtype=x.dtype)
        return noise * x.float().std().to(x.dtype)

    keys = {layer: like(call.key) for layer, call in calls.items()}
    return States(keys, {layer: like(call.value) for layer, call in calls.items()})
