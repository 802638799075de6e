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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cedkv.core.errors import UserError
from cedkv.injection.calls import AttentionCall, Observer
from cedkv.injection.decode import attend, can_attend, can_decode, decode
from cedkv.injection.masks import (
    additive,
    full_mask,
    skippable,
    unless_replaced,
    with_bias,
    with_slots,
)
from cedkv.injection.replay import Block
from cedkv.injection.switch import PREFIX, members, switched
from cedkv.memory.state import LayerSlots, States
from cedkv.models.families import UnreachableError
from cedkv.models.layers import AttentionLayer, attention_modules


class Tail:
    """Lets a layer attend with the queries of some positions only, to keys and values of all of them.

    The layer is called twice. The first call ends at its attention with `Captured`, when keys and values are known;
    the second one gets the chosen positions only.

    Args:
        mask: [B or 1, 1, queries, T] bool, what the chosen positions see.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.key: Tensor | None = None
        self.value: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Packing:
    """How a layer attends in rows that hold several prompts: each position sees its own prompt.

    `mask` [B or 1, 1, Q, T] bool replaces the model's own; `last` [B, K] are the places where prompts end; `tail` is for
    a layer that is called for its ends only.
    """

    mask: Tensor
    last: Tensor
    tail: Tail | None = None


class Captured(Exception):  # noqa: N818 - no error: the way out of a layer whose keys are known
    """Keys and values of the last layer are known."""


@dataclass(frozen=True, slots=True)
class _Active:
    """What happens at one attention module."""

    layer: AttentionLayer
    states: States | None
    rows: Tensor | None
    observer: Observer | None
    packing: Packing | None = None
    masks: dict[tuple[int, torch.dtype, bool], Tensor] = field(
        init=False, default_factory=dict, compare=False
    )
    """Of slots with a bias beside one query that sees all keys, wider than needed: made once for many tokens."""

    @property
    def is_plain(self) -> bool:
        """Whether slots without positions are all there is to it."""
        alone = self.observer is None and self.packing is None
        return alone and (self.states is None or self.states.positions is None)

    def taken(self) -> list[Tensor]:
        """Keys, values and, where there are any, biases of the slots at this layer."""
        if self.states is None:
            return []
        slots = self.states.at(self.layer.index)
        return [x for x in (slots.key, slots.value, slots.bias) if x is not None]

    def again(self, taken: Sequence[Tensor]) -> _Active:
        """The same with other such tensors, and seen by nobody."""
        if self.states is None:
            return replace(self, observer=None)
        key, value, *bias = ({self.layer.index: x} for x in taken)
        states = States(key, value, self.states.positions, bias[0] if bias else None)
        return replace(self, states=states, observer=None)


# Keyed by module, so that blocks of different models can stand inside one another.
_ACTIVE: ContextVar[Mapping[nn.Module, _Active]] = ContextVar("cedkv_active", default=MappingProxyType({}))
_HERE: ContextVar[tuple[frozenset[nn.Module], ...]] = ContextVar("cedkv_here", default=())
"""The models of whose blocks this thread is in one."""


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
    active = _ACTIVE.get().get(module)
    if active is None:
        _refuse_strangers(module)
        return stock(module, query, key, value, attention_mask, **kwargs)
    layer, states, slots, last = active.layer.index, active.states, 0, None
    if active.packing is not None:
        _refuse_sparse(module, kwargs)
        key, value, attention_mask, last = _packed(active.packing, key, value)
        kwargs["is_causal"] = False
    if states is not None and layer in states.keys:
        _refuse_sparse(module, kwargs)
        _refuse_chunks(active.layer, states, key.shape[2])
        if states.positions is not None and active.layer.window is not None:
            states = _in_reach(states, states.positions, layer, active.layer.window)
        own = _of_rows(states, layer, active.rows, key.shape[0])
        if implementation == "sdpa" and active.is_plain and can_decode(query, key, kwargs):
            return decode(query, key, value, attention_mask, own, scaling=kwargs.get("scaling")), None
        slots, length = states.slots, key.shape[2]
        attention_mask = with_slots(states, active.layer.window, attention_mask, query.shape[2], length)
        key = torch.cat([own.key.to(key.dtype), key], dim=2)
        value = torch.cat([own.value.to(value.dtype), value], dim=2)
        if own.bias is not None:
            attention_mask = _biased(active, own.bias, attention_mask, query, key.shape[2])
        kwargs["is_causal"] = False
        if implementation == "sdpa" and active.is_plain and can_attend(query, attention_mask, kwargs):
            return attend(query, key, value, attention_mask, scaling=kwargs.get("scaling")), None
    if active.observer is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        call = AttentionCall(layer, query, key, value, attention_mask, scaling, slots)
        active.observer(replace(call, softcap=kwargs.get("softcap"), sinks=kwargs.get("s_aux"), last=last))
    if implementation == "eager" and attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = additive(attention_mask, query.dtype)
    return stock(module, query, key, value, attention_mask, **kwargs)


_ELSEWHERE = (
    "this thread calls a model to which another one has a memory attached, and says nothing of whether it is to have it, too: "
    "call it in a block of this thread's own (`with inject(model, states)`, `with memory.attach(model, state)`; None for the bare model), "
    "or let the block make the call (`attached.bind(model.generate)`)"
)


SPARE = 64
"""Keys that a mask has room for beyond those that are there."""


def _biased(active: _Active, bias: Tensor, mask: Tensor | None, query: Tensor, keys: int) -> Tensor:
    """`with_bias`; while tokens are generated one by one, from a mask that is there already."""
    if mask is not None or bias.requires_grad:
        return with_bias(mask, bias, query.shape[1], keys, query.dtype)
    # What is made in inference mode no graph may hold.
    kind = query.shape[0], query.dtype, torch.is_inference_mode_enabled()
    wide = active.masks.get(kind)
    if wide is None or wide.shape[3] < keys:
        wide = active.masks[kind] = with_bias(None, bias, query.shape[1], keys + SPARE, query.dtype)
    return wide[..., :keys]


def _refuse_strangers(module: nn.Module) -> None:
    """A layer that nothing happens at may be called by a thread that is in a block of its model."""
    here = _HERE.get()
    if not here or (module not in here[-1] and not any(module in model for model in here)):
        raise UserError(_ELSEWHERE)


def _packed(packing: Packing, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Keys, values, mask, and the places of the last positions among the queries (None: at the end)."""
    tail = packing.tail
    if tail is None:
        return key, value, packing.mask, packing.last
    if tail.key is None or tail.value is None:
        tail.key, tail.value = key, value
        raise Captured
    return tail.key, tail.value, tail.mask, None


def _in_reach(states: States, positions: Tensor, layer: int, window: int) -> States:
    """Of whole documents the slots of one layer that its window lets some token see."""
    key, value = states.keys[layer], states.values[layer]
    out = int((positions <= -window).sum())  # the first token, at 0, sees furthest back
    return States({layer: key[:, :, out:]}, {layer: value[:, :, out:]}, positions[out:])


def _refuse_chunks(layer: AttentionLayer, states: States, length: int) -> None:
    """A layer that attends in chunks counts them from the front of the teacher's context, where the document is."""
    if states.positions is None or layer.chunk is None:
        return
    total = states.slots + length
    if total > layer.chunk:
        raise UserError(
            f"layer {layer.index} attends in chunks of {layer.chunk} tokens, but a document and what is read behind it are {total}: "
            "split the document into shorter ones"
        )


def _refuse_sparse(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Arguments that name keys by their place would mean other keys once slots stand in front."""
    for name in ("indices", "block_indices", "position_bias"):
        if kwargs.get(name) is not None:
            family = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
            raise UnreachableError(family, f"chooses or weighs keys by their place ({name!r})")


def _of_rows(states: States, layer: int, rows: Tensor | None, batch: int) -> LayerSlots:
    """The slots of `batch` rows: one state for all, or state `rows[b]` each (repeated for beams)."""
    if rows is not None and batch % rows.numel():
        raise ValueError(
            f"rows names a state for each of {rows.numel()} prompts, but the batch has {batch} rows"
        )
    if rows is not None:
        return states.at(layer, rows.repeat_interleave(batch // rows.numel()))
    one = states.at(layer)
    if one.key.shape[0] == batch:
        return one
    key, value = (x.expand(batch, *x.shape[1:]) for x in (one.key, one.value))
    return LayerSlots(key, value, None if one.bias is None else one.bias.expand(batch, -1, -1))


def _register(implementation: str, mask_function: Callable[..., Any]) -> None:
    AttentionInterface.register(PREFIX + implementation, partial(_attention, implementation=implementation))
    AttentionMaskInterface.register(PREFIX + implementation, mask_function)


_register("sdpa", unless_replaced(full_mask))
_register("eager", unless_replaced(eager_mask))


@contextmanager
def _activated(
    model: PreTrainedModel, own: Mapping[nn.Module, AttentionLayer], modules: Mapping[nn.Module, _Active]
) -> Iterator[None]:
    """Within the block `modules` do this and the others of the model's `own` nothing, whatever an outer block said."""
    others = {module: active for module, active in _ACTIVE.get().items() if module not in own}
    here = _HERE.get()
    inside = here if members(model) in here else (*here, members(model))
    with switched(model, partial(_taken, model)) if modules else nullcontext():
        tokens = _ACTIVE.set({**others, **modules}), _HERE.set(inside)
        try:
            yield
        finally:
            _ACTIVE.reset(tokens[0])
            _HERE.reset(tokens[1])


def _taken(model: PreTrainedModel, module: nn.Module) -> tuple[list[Tensor], Block]:
    """The slots that attention within `module` gets now, and the block this happens in (see `cedkv.injection.replay`)."""
    inside = set(module.modules())
    now = {attention: active for attention, active in _ACTIVE.get().items() if attention in inside}
    parts = [active.taken() for active in now.values()]

    def block(given: Sequence[Tensor]) -> AbstractContextManager[None]:
        rest = iter(given)
        modules = {
            attention: active.again(list(islice(rest, len(part))))
            for (attention, active), part in zip(now.items(), parts, strict=True)
        }
        return _activated(model, attention_modules(model), modules)

    return [x for part in parts for x in part], block


@contextmanager
def armed(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, entering and leaving an injection is cheap: the model's attention is switched over once.

    Layers without slots still call the stock function, as they do inside any injection.
    """
    with switched(model, partial(_taken, model)), _activated(model, attention_modules(model), {}):
        yield


@contextmanager
def inject(
    model: PreTrainedModel,
    states: States | None,
    rows: Tensor | None = None,
    observer: Observer | None = None,
    *,
    packing: Mapping[nn.Module, Packing] = MappingProxyType({}),
) -> Iterator[None]:
    """Within the block, `model` attends to `states` before its own keys.

    Layers that gradient checkpointing runs again in the backward pass attend to them then, too, wherever that pass runs.

    Args:
        states: what to inject; None injects nothing (and the model is untouched, bitwise).
        rows: [B] index of the state each row of the batch gets; None gives the one state to every row. A batch of
            k · B rows (beam search) repeats each row's state k times.
        observer: called with every injected layer's `AttentionCall`; with nothing injected, with every layer's.
        packing: attention modules to which rows come that hold several prompts (see `cedkv.injection.resume`).

    Raises:
        UserError: an attention implementation that cannot carry slots.
        ValueError: several states without `rows`, a row without a state, a layer that this model does not have.
    """
    if states is not None and states.slots == 0:
        states = None
    own = attention_modules(model)
    if states is None:
        chosen: Mapping[nn.Module, AttentionLayer] = own if observer is not None else {}
    else:
        _check(states, rows, {layer.index for layer in own.values()})
        chosen = {module: layer for module, layer in own.items() if layer.index in states.keys}
    active = {m: _Active(layer, states, rows, observer) for m, layer in chosen.items()}
    for module, how in packing.items():
        active[module] = replace(active.get(module, _Active(own[module], None, None, None)), packing=how)
    with _activated(model, own, active), skippable(not active):
        yield


def _check(states: States, rows: Tensor | None, attention: set[int]) -> None:
    missing = sorted(set(states.layers) - attention)
    if missing:
        raise ValueError(
            f"the states hold layers {missing}, but attention layers of this model are {sorted(attention)}: "
            "they were made for another model"
        )
    if rows is None and states.count > 1:
        raise ValueError(f"{states.count} states need `rows`, the state of each row of the batch")
    # On a GPU the check would wait for everything before it; there an index out of range fails in the kernel.
    known = rows is not None and rows.device.type == "cpu"
    if rows is not None and (rows.ndim != 1 or (known and not _within(rows, states.count))):
        raise ValueError(
            f"rows {rows.tolist()} must name states 0 to {states.count - 1}, one for each row of the batch"
        )


def _within(rows: Tensor, count: int) -> bool:
    return bool(((rows >= 0) & (rows < count)).all())


@contextmanager
def observe(model: PreTrainedModel, layers: tuple[int, ...], observer: Observer) -> Iterator[None]:
    """Within the block, `observer` sees every `AttentionCall` of `layers`; nothing is injected."""
    own = attention_modules(model)
    watched = {m: _Active(layer, None, None, observer) for m, layer in own.items() if layer.index in layers}
    with _activated(model, own, watched):
        yield
