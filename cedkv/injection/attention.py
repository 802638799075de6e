"""Put slots into the attention of a frozen model, for the length of a `with` block.

    with inject(model, states, rows):
        logits = model(input_ids).logits

Slots are prepended to the keys and values a layer hands to transformers' attention interface, after RoPE and after the
cache, so that they take part in the layer's own softmax. Nothing is patched at import; leaving the block restores the
model. Where no slots are active the stock attention function is called with the arguments it would have got anyway:
the logits are bitwise those of the bare model.

Shapes: B rows, H query heads, G kv heads, Q queries, T keys, S slots, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cedkv.core.errors import UserError
from cedkv.memory.state import States
from cedkv.models.layers import AttentionLayer, attention_modules

PREFIX = "cedkv_"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer hands to its attention function, with the slots (if any) already prepended to keys, values and mask."""

    layer: int
    query: Tensor  # [B, H, Q, D]
    key: Tensor  # [B, G, S + T, D]
    value: Tensor  # [B, G, S + T, D]
    mask: Tensor | None  # bool or additive float, [B or 1, 1, Q, S + T]
    scaling: float
    slots: int

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S + T] of the last `queries` positions, recomputed in float32."""
        groups = self.query.shape[1] // self.key.shape[1]
        key = self.key.repeat_interleave(groups, dim=1).float()
        scores = self.query[:, :, -queries:].float() @ key.transpose(-1, -2) * self.scaling
        if self.mask is None:
            mask = _causal(self.query.shape[2], self.key.shape[2], scores.device)[-queries:]
        else:
            mask = self.mask[:, :, -queries:]
        hidden = ~mask if mask.dtype == torch.bool else mask < -1e30
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)


Observer = Callable[[AttentionCall], None]


@dataclass(frozen=True, slots=True)
class _Active:
    modules: dict[nn.Module, AttentionLayer]
    states: States | None
    rows: Tensor | None
    observer: Observer | None


_ACTIVE: ContextVar[_Active | None] = ContextVar("cedkv_active", default=None)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Lower-right causal mask [Q, T]: the last query sees every key."""
    q, k = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return k[None, :] <= q[:, None] + (keys - queries)


def _stock(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function this module would call without us; eager ones live beside their module."""
    if implementation == "eager":
        function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        assert function is not None, f"{type(module).__name__} has no eager attention function"
        return function
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    stock = _stock(implementation, module)
    active = _ACTIVE.get()
    layer = None if active is None else active.modules.get(module)
    if active is None or layer is None:
        return stock(module, query, key, value, attention_mask, **kwargs)
    slots = 0
    if active.states is not None and layer.index in active.states.keys:
        slots = active.states.slots
        key, value, attention_mask = _prepend(active, layer, query, key, value, attention_mask)
        kwargs["is_causal"] = False
    if active.observer is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        active.observer(AttentionCall(layer.index, query, key, value, attention_mask, scaling, slots))
    return stock(module, query, key, value, attention_mask, **kwargs)


def _prepend(
    active: _Active, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask with the slots in front."""
    assert active.states is not None
    batch, queries, length = key.shape[0], query.shape[2], key.shape[2]
    slot_keys = _rows(active.states.keys[layer.index], active.rows, batch).to(key.dtype)
    slot_values = _rows(active.states.values[layer.index], active.rows, batch).to(value.dtype)
    if mask is None:  # unpadded: the mask that sdpa would have implied
        mask = _causal(queries, length, key.device)[None, None]
    visible = torch.ones(queries, active.states.slots, dtype=torch.bool, device=key.device)
    if active.states.positions is not None and layer.window is not None:
        at = torch.arange(length - queries, length, device=key.device)
        visible = at[:, None] - active.states.positions[None, :] < layer.window
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(
            ~visible, torch.finfo(mask.dtype).min
        )
    visible = visible.expand(mask.shape[0], mask.shape[1], -1, -1)
    return (
        torch.cat([slot_keys, key], dim=2),
        torch.cat([slot_values, value], dim=2),
        torch.cat([visible, mask[..., :length]], dim=3),
    )


def _rows(slots: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """Slots [B, G, S, D] for `batch` rows: one state for all, or state `rows[b]` each (repeated for beams)."""
    if rows is None:
        return slots.expand(batch, -1, -1, -1)
    if batch % rows.numel():
        raise ValueError(
            f"rows names a state for each of {rows.numel()} prompts, but the batch has {batch} rows"
        )
    return slots[rows.repeat_interleave(batch // rows.numel())]


def _register(implementation: str, mask_function: Callable[..., Any]) -> None:
    AttentionInterface.register(PREFIX + implementation, partial(_attention, implementation=implementation))
    AttentionMaskInterface.register(PREFIX + implementation, mask_function)


def _full_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Sdpa's mask, never skipped: with slots in front, `is_causal` would crop the keys to the first Q."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


_register("sdpa", _full_mask)
_register("eager", eager_mask)


@contextmanager
def _activated(model: PreTrainedModel, active: _Active) -> Iterator[None]:
    stock = model.config._attn_implementation
    nested = stock.startswith(PREFIX)
    if not nested:
        if stock not in ("sdpa", "eager"):
            raise UserError(
                f"attention implementation {stock!r} cannot carry slots: load the model with 'sdpa' or 'eager'"
            )
        if model.training and getattr(model, "is_gradient_checkpointing", False):
            raise UserError(
                "gradient checkpointing runs the forward pass again outside the injection, without the slots: "
                "switch it off (model.gradient_checkpointing_disable()); only slots are trained, memory is not short"
            )
        model.set_attn_implementation(PREFIX + stock)
        assert model.config._attn_implementation == PREFIX + stock
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        if not nested:
            model.set_attn_implementation(stock)


@contextmanager
def inject(
    model: PreTrainedModel,
    states: States | None,
    rows: Tensor | None = None,
    observer: Observer | None = None,
) -> Iterator[None]:
    """Within the block, `model` attends to `states` before its own keys.

    Args:
        states: what to inject; None injects nothing (and the model is untouched, bitwise).
        rows: [B] index of the state each row of the batch gets; None gives the one state to every row. A batch of
            k · B rows (beam search) repeats each row's state k times.
        observer: called with every injected layer's `AttentionCall`.

    Raises:
        UserError: an attention implementation that cannot carry slots.
        ValueError: several states without `rows`.
    """
    if states is not None and states.slots == 0:
        states = None
    if states is None and observer is None:
        yield
        return
    if states is not None and states.count > 1 and rows is None:
        raise ValueError(f"{states.count} states need `rows`, the state of each row of the batch")
    modules = attention_modules(model)
    if states is not None:
        modules = {module: layer for module, layer in modules.items() if layer.index in states.keys}
    with _activated(model, _Active(modules, states, rows, observer)):
        yield


@contextmanager
def observe(model: PreTrainedModel, layers: tuple[int, ...], observer: Observer) -> Iterator[None]:
    """Within the block, `observer` sees every `AttentionCall` of `layers`; nothing is injected."""
    modules = {module: layer for module, layer in attention_modules(model).items() if layer.index in layers}
    with _activated(model, _Active(modules, None, None, observer)):
        yield
