"""Run the model's own code from its first injected layer on, for prompts whose way up to there is kept in a `Trunk`.

Nothing of the model is rewritten: layers below pass their input on, the first injected one gets the kept hidden states,
and the last one is called for the positions that matter only (see `Tail`). Every attention gets the mask of the packed
rows. Leaving the block restores every forward method.

Shapes: B packed rows of U nodes with K ends, N states, R = B · N rows of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cedkv.injection.attention import Captured, Packing, Tail, inject
from cedkv.injection.calls import Attended, MergedCall
from cedkv.injection.masks import no_masks
from cedkv.injection.merge import OwnAttention
from cedkv.injection.replay import refuse_checkpointing
from cedkv.injection.tree import Packed
from cedkv.injection.trunk import NoShortcutError, Shortcut, Trunk, whole_pass
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, decoder_layers

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
"""What families call the projection behind attention; without one of these, `Shortcut.MERGE` cannot be used."""


def resume(
    model: PreTrainedModel,
    trunk: Trunk,
    packed: Packed,
    states: States,
    rows: Tensor,
    *,
    observer: Callable[[Attended], None] | None = None,
) -> Tensor:
    """Logits [B, K, V] of packed prompts, each row under its state, differentiable in `states`.

    Args:
        trunk: where the prompts come from; it ends where the first of `states` enters.
        states: what is injected.
        rows: [B] the state of each row.
        observer: called for every injected layer.
    """
    first = states.layers[0]

    def attend(own: OwnAttention, last: Tensor | None) -> Tensor:
        out, weights = own.merged(states.at(first, rows))
        if observer is not None:
            observer(MergedCall(first, states.slots, weights, last))
        return out

    return _resumed(model, trunk, packed, _Injected(states, rows, 1, observer, attend))


def resume_product(
    model: PreTrainedModel, trunk: Trunk, packed: Packed, states: States, columns: Tensor
) -> Tensor:
    """Logits [B, N, K, V] of packed prompts, each row under every one of the N states `columns`; no graph is made."""
    first, times = states.layers[0], columns.numel()

    def attend(own: OwnAttention, _: Tensor | None) -> Tensor:
        return own.merged_with_all(states.at(first, columns)).flatten(0, 1)

    rows = packed.nodes.shape[0]
    injected = _Injected(states, columns.repeat(rows), times, None, attend)
    return _resumed(model, trunk, packed, injected).unflatten(0, (rows, times))


@dataclass(frozen=True, slots=True)
class _Injected:
    """The states of R rows, which are the packed ones `times` each; `attend` merges the first layer's with its own."""

    states: States
    rows: Tensor
    times: int
    observer: Callable[[Attended], None] | None
    attend: Callable[[OwnAttention, Tensor | None], Tensor]  # [R, U or K, H, E]


def _resumed(model: PreTrainedModel, trunk: Trunk, packed: Packed, injected: _Injected) -> Tensor:
    rows, ends = packed.nodes.shape[0] * injected.times, packed.ends.shape[1]
    if trunk.shortcut is Shortcut.PLAIN:
        with inject(model, injected.states, injected.rows, injected.observer):
            return whole_pass(model, _each(trunk.tokens(packed.nodes), injected.times), ends)
    if model not in _ONE_LENGTH:
        try:
            logits = _from_first(model, trunk, packed, injected, filled=False)
            if logits.shape[:2] == (rows, ends):
                return logits
        except RuntimeError:
            pass  # tried again below, where it is raised again if the length was not the reason
        _ONE_LENGTH.add(model)
    return _from_first(model, trunk, packed, injected, filled=True)


_ONE_LENGTH: WeakSet[PreTrainedModel] = WeakSet()
"""Models (GPT-2) that give their last hidden states the shape of the input again, which then have to have its length."""


def _from_first(
    model: PreTrainedModel, trunk: Trunk, packed: Packed, injected: _Injected, *, filled: bool
) -> Tensor:
    """Logits [R, K, V]; `filled`: the last layer's output is filled up to the length of the input."""
    refuse_checkpointing(model)
    states, times = injected.states, injected.times
    ids = _each(trunk.tokens(packed.nodes), times)
    layers = decoder_layers(model)
    first, last = states.layers[0], len(layers) - 1
    modules = {layer.index: (module, layer.window) for module, layer in attention_modules(model).items()}
    merge, tail = trunk.shortcut >= Shortcut.MERGE, trunk.shortcut >= Shortcut.TAIL and last in modules
    # Where the one layer is both, keys and values of the prompts are known: only the ends go through it.
    at_once = merge and first == last
    packing = {
        module: _packing(packed, window, times, tail=tail and index == last)
        for index, (module, window) in modules.items()
        if index > first or (index == first and not merge)
    }
    with ExitStack() as stack:
        stack.enter_context(_begun(layers, first, _each(trunk.hidden(packed.nodes), times)))
        if merge:
            own = trunk.own(packed.at_ends(packed.nodes) if at_once else packed.nodes)
            spots = None if at_once else packed.ends
            stack.enter_context(_merged(modules[first][0], lambda: injected.attend(own, spots)))
        if at_once:
            stack.enter_context(_replaced(layers[last], _at_ends(layers[last].forward, packed)))
        elif tail:
            module = modules[last][0]
            known = packing[module].tail
            assert known is not None
            stack.enter_context(_replaced(layers[last], _tailed(layers[last], module, known, packed)))
        if filled or not (tail or at_once):
            stack.enter_context(_given_back(layers[last], packed, cut=not (tail or at_once), filled=filled))
        stack.enter_context(no_masks())
        stack.enter_context(inject(model, states, injected.rows, injected.observer, packing=packing))
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),  # spares the model the search for packed sequences
            position_ids=packed.depths if packed.depths.shape[0] == 1 else _each(packed.depths, times),
            use_cache=False,
            logits_to_keep=torch.arange(packed.ends.shape[1], device=ids.device) if filled else 0,
        ).logits


def _each(x: Tensor, times: int) -> Tensor:
    """Each row of `x` `times` times."""
    if x.shape[0] == 1:
        return x.expand(times, *x.shape[1:])
    return x.repeat_interleave(times, 0) if times > 1 else x


def _packing(packed: Packed, window: int | None, times: int, *, tail: bool) -> Packing:
    """What attention of one layer needs to know."""
    mask = packed.windowed(window)
    chosen = Tail(_each(packed.at_ends(mask), times)[:, None]) if tail else None
    return Packing(_each(mask, times)[:, None], packed.ends, chosen)


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `module` runs `forward` instead of its own."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def _begun(layers: nn.ModuleList, first: int, hidden: Tensor) -> Iterator[None]:
    """Layers below `first` pass their input on; `first` gets `hidden`."""

    def pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    def enter(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with ExitStack() as stack:
        for layer in layers[:first]:
            stack.enter_context(_replaced(layer, pass_on))
        stack.callback(layers[first].register_forward_pre_hook(enter, with_kwargs=True).remove)
        yield


@contextmanager
def _given_back(layer: nn.Module, packed: Packed, *, cut: bool, filled: bool) -> Iterator[None]:
    """What `layer` gives becomes [R, K, h], or [R, U, h] with the ends in front.

    Args:
        cut: take the ends out of it first.
        filled: up to the length of the input.
    """
    length, ends = packed.nodes.shape[1], packed.ends.shape[1]

    def leave(_: nn.Module, __: Any, found: Tensor) -> Tensor:
        found = packed.at_ends(found) if cut else found
        if not filled:
            return found
        whole = found.new_zeros(found.shape[0], length, found.shape[2])
        whole[:, :ends] = found
        return whole

    handle = layer.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


_ALL_HEADS: WeakSet[nn.Module] = WeakSet()
"""Attention modules whose code does not go through with projections of one head."""


def _tailed(layer: nn.Module, attention: nn.Module, tail: Tail, packed: Packed) -> Callable[..., Any]:
    """The forward of `layer` that gives its ends only.

    The queries of its first call are never read, nor the keys and values of its second one: zeros of one head stand in.
    """
    whole, at_ends = layer.forward, _at_ends(layer.forward, packed)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if attention not in _ALL_HEADS:
            try:
                return called(("q_proj",), ("k_proj", "v_proj"), args, kwargs)
            except (RuntimeError, ValueError, IndexError):
                _ALL_HEADS.add(attention)
                tail.key = tail.value = None
        return called((), (), args, kwargs)

    def called(
        first: tuple[str, ...], second: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            with _one_head(attention, first):
                whole(*args, **kwargs)
        except Captured:
            with _one_head(attention, second):
                return at_ends(*args, **kwargs)
        raise NoShortcutError(f"{type(layer).__name__} did not call its attention")

    return forward


@contextmanager
def _one_head(attention: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Within the block the projections `names` of `attention`, where it has them, give zeros of one head."""
    size = getattr(attention, "head_dim", None)
    with ExitStack() as stack:
        if isinstance(size, int):
            for name in names:
                if isinstance(project := getattr(attention, name, None), nn.Linear):
                    stack.enter_context(_replaced(project, partial(_zeros, size=size)))
        yield


def _zeros(x: Tensor, size: int) -> Tensor:
    """[..., size] of them, without room of their own."""
    return x.new_zeros(1).expand(*x.shape[:-1], size)


def _at_ends(whole: Callable[..., Any], packed: Packed) -> Callable[..., Any]:
    """A layer's forward that is called for its ends only."""
    length = packed.nodes.shape[1]

    def cut(value: Any) -> Any:
        """Position ids [1 or R, U] and rotary inputs [1 or R, U, D] at the ends."""
        if isinstance(value, tuple):
            return tuple(cut(item) for item in value)
        of_positions = isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == length
        return packed.at_ends(value) if of_positions else value

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        named = {name: cut(value) for name, value in kwargs.items()}
        return whole(packed.at_ends(hidden_states), *(cut(value) for value in args), **named)

    return forward


@contextmanager
def _merged(module: nn.Module, attend: Callable[[], Tensor]) -> Iterator[None]:
    """The attention `module` gives what `attend` [R, U, H, E] does, behind its own output projection."""
    project = next((getattr(module, name) for name in OUTPUT_PROJECTIONS if hasattr(module, name)), None)
    if project is None:
        raise NoShortcutError(f"{type(module).__name__} has none of {', '.join(OUTPUT_PROJECTIONS)}")
    dtype = next(project.parameters()).dtype

    def forward(*_: Any, **__: Any) -> tuple[Tensor, None]:
        return project(attend().flatten(2).to(dtype)), None

    with _replaced(module, forward):
        yield
