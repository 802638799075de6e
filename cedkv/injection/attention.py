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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cedkv.core.errors import UserError
from cedkv.injection.masks import additive, causal_mask, full_mask, unless_replaced, with_bias, with_slots
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
    softcap: float | None = None  # Gemma 2: scores are c · tanh(score / c)
    sinks: Tensor | None = None  # gpt-oss: [H], a score per head that takes weight and gives nothing
    last: Tensor | None = (
        None  # [B, K] the queries that count as the last ones, where these are not at the end
    )

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S + T] of the last `queries` positions, recomputed in float32.

        They sum to one, or to less where the model has sinks.
        """
        scores = self.scores(queries)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = wide(self.sinks)[None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]

    def scores(self, queries: int) -> Tensor:
        """What the last `queries` positions give every key before the softmax: [B, H, queries, S + T], float32 at least."""
        groups = self.query.shape[1] // self.key.shape[1]
        key = wide(self.key).repeat_interleave(groups, dim=1)
        mask = self.mask
        if mask is None:
            mask = causal_mask(self.query.shape[2], self.key.shape[2], key.device)[None, None]
        query, mask = (last_of(x, self.last, queries) for x in (self.query, mask))
        scores = wide(query) @ key.transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * (scores / self.softcap).tanh()
        # An additive mask hides a key by the smallest number of its type: in half precision no more than -65504.
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + wide(mask)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def last_of(x: Tensor, last: Tensor | None, queries: int) -> Tensor:
    """The last `queries` of axis 2 of `x` [B or 1, H or 1, Q, ...]; of the places `last` [B, K] where these are given."""
    if last is None:
        return x[:, :, -queries:]
    at = last[:, -queries:]
    rows = torch.arange(at.shape[0], device=at.device)[:, None] if x.shape[0] > 1 else 0
    return x.transpose(1, 2)[rows, at].transpose(1, 2)


@dataclass(frozen=True, slots=True)
class MergedCall:
    """What an observer sees of a layer whose slots were merged into attention that had been computed before."""

    layer: int
    slots: int
    weights: Tensor  # [B, H, Q, S], of the slots only
    last: Tensor | None = None  # as in `AttentionCall`

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S] of the last `queries` positions on the slots."""
        return last_of(self.weights, self.last, queries)


class Attended(Protocol):
    """What is left to see of a layer however its slots came in."""

    @property
    def slots(self) -> int:
        """How many there are."""

    def last_weights(self, queries: int) -> Tensor:
        """Attention weights [B, H, queries, S ...] of the last `queries` positions, slots first."""


Observer = Callable[[AttentionCall], None]


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


# Keyed by module, so that blocks of different models can stand inside one another.
_ACTIVE: ContextVar[Mapping[nn.Module, _Active]] = ContextVar("cedkv_active", default=MappingProxyType({}))


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
        return stock(module, query, key, value, attention_mask, **kwargs)
    layer, states, slots, last = active.layer.index, active.states, 0, None
    if active.packing is not None:
        _refuse_sparse(module, kwargs)
        key, value, attention_mask, last = _packed(active.packing, key, value)
        kwargs["is_causal"] = False
    if states is not None and layer in states.keys:
        _refuse_sparse(module, kwargs)
        states = _in_reach(states, layer, active.layer.window)
        slots, length, batch = states.slots, key.shape[2], key.shape[0]
        attention_mask = with_slots(states, active.layer.window, attention_mask, query.shape[2], length)
        key = torch.cat([_rows(states.keys[layer], active.rows, batch).to(key.dtype), key], dim=2)
        value = torch.cat([_rows(states.values[layer], active.rows, batch).to(value.dtype), value], dim=2)
        if states.bias is not None:
            bias = _rows(states.bias[layer], active.rows, batch)
            attention_mask = with_bias(attention_mask, bias, query.shape[1], query.dtype, length)
        kwargs["is_causal"] = False
    if active.observer is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        call = AttentionCall(layer, query, key, value, attention_mask, scaling, slots)
        active.observer(replace(call, softcap=kwargs.get("softcap"), sinks=kwargs.get("s_aux"), last=last))
    if implementation == "eager" and attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = additive(attention_mask, query.dtype)
    return stock(module, query, key, value, attention_mask, **kwargs)


def _packed(packing: Packing, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Keys, values, mask, and the places of the last positions among the queries (None: at the end)."""
    tail = packing.tail
    if tail is None:
        return key, value, packing.mask, packing.last
    if tail.key is None or tail.value is None:
        tail.key, tail.value = key, value
        raise Captured
    return tail.key, tail.value, tail.mask, None


def _in_reach(states: States, layer: int, window: int | None) -> States:
    """The slots of one layer, of whole documents those only that its window lets some token see."""
    key, value = states.keys[layer], states.values[layer]
    if states.positions is None or window is None:
        bias = None if states.bias is None else {layer: states.bias[layer]}
        return States({layer: key}, {layer: value}, states.positions, bias)
    out = int((states.positions <= -window).sum())  # the first token, at 0, sees furthest back
    return States({layer: key[:, :, out:]}, {layer: value[:, :, out:]}, states.positions[out:])


def _refuse_sparse(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Arguments that name keys by their place would mean other keys once slots stand in front."""
    for name in ("indices", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} attends by {name!r}, which counts keys from the front: slots cannot stand there; "
                "use a model with dense attention"
            )


def _rows(slots: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """Slots [B, G, S, ...] for `batch` rows: one state for all, or state `rows[b]` each (repeated for beams)."""
    if rows is None:
        return slots.expand(batch, *slots.shape[1:])
    if batch % rows.numel():
        raise ValueError(
            f"rows names a state for each of {rows.numel()} prompts, but the batch has {batch} rows"
        )
    return slots[rows.repeat_interleave(batch // rows.numel())]


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
    before: str = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    stock = before.removeprefix(PREFIX)
    if stock not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {stock!r} cannot carry slots: load the model with 'sdpa' or 'eager'"
        )
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UserError(
            "gradient checkpointing runs the forward pass again outside the injection, without the slots: switch it off, "
            "or call model.eval(): a frozen model needs neither"
        )
    _switch(model, PREFIX + stock if modules else stock)
    others = {module: active for module, active in _ACTIVE.get().items() if module not in own}
    token = _ACTIVE.set({**others, **modules})
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        _switch(model, before)


@contextmanager
def armed(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, entering and leaving an injection is cheap: the model's attention is switched over once.

    Layers without slots still call the stock function, as they do inside any injection.
    """
    before: str = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    with _activated(model, attention_modules(model), {}):
        _switch(model, PREFIX + before.removeprefix(PREFIX))
        yield


def _switch(model: PreTrainedModel, implementation: str) -> None:
    """Set the attention implementation; transformers itself only warns where it cannot."""
    if model.config._attn_implementation == implementation:  # noqa: SLF001
        return
    model.set_attn_implementation(implementation)
    if model.config._attn_implementation != implementation:  # noqa: SLF001
        raise UserError(
            f"model family {model.config.model_type!r} does not route its attention through transformers' attention "
            "interface, so injected slots would be ignored: use a family that does"
        )


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
    if states is None and observer is None and not packing:
        if not model.config._attn_implementation.startswith(PREFIX):  # noqa: SLF001
            yield  # untouched, whatever its attention implementation
            return
        chosen: Mapping[nn.Module, AttentionLayer] = {}
    elif states is None:
        chosen = own if observer is not None else {}
    else:
        _check(states, rows, {layer.index for layer in own.values()})
        chosen = {module: layer for module, layer in own.items() if layer.index in states.keys}
    active = {m: _Active(layer, states, rows, observer) for m, layer in chosen.items()}
    for module, how in packing.items():
        active[module] = replace(active.get(module, _Active(own[module], None, None, None)), packing=how)
    with _activated(model, own, active):
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
