"""Run the model's own code from its first injected layer on, for prompts whose way up to there is kept in a `Trunk`.

Nothing of the model is rewritten: layers below pass their input on, the first injected one gets the kept hidden states,
and the last one is called twice (see `Tail`). Leaving the block restores every forward method.

Shapes: R rows (prompt, state), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cedkv.injection.attention import Attended, Captured, MergedCall, Tail, inject
from cedkv.injection.trunk import Bucket, NoShortcutError, OwnAttention, Shortcut, log_probs
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, decoder_layers

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
"""What families call the projection behind attention; without one of these, `Shortcut.MERGE` cannot be used."""


def resume(
    model: PreTrainedModel,
    bucket: Bucket,
    prompts: Tensor,
    states: States,
    rows: Tensor,
    *,
    shortcut: Shortcut,
    observer: Callable[[Attended], None] | None = None,
) -> Tensor:
    """Log-probabilities [R, keep, V] of prompts of one bucket, each under its state, differentiable in `states`.

    Args:
        bucket: prompts of one length, from a trunk that ends where the first of `states` enters.
        prompts: [R] rows of the bucket, repeats allowed.
        states: what is injected.
        rows: [R] the state of each row.
        shortcut: what is left out; not more than the trunk was made for.
        observer: called for every injected layer.
    """
    first = states.layers[0]

    def attend(own: OwnAttention) -> Tensor:
        out, weights = own.merged(states.keys[first][rows], states.values[first][rows])
        if observer is not None:
            observer(MergedCall(first, states.slots, weights))
        return out

    return _resumed(model, bucket, prompts, _Injected(states, rows, observer, attend, prompts), shortcut)


def resume_product(
    model: PreTrainedModel,
    bucket: Bucket,
    prompts: Tensor,
    states: States,
    columns: Tensor,
    *,
    shortcut: Shortcut,
) -> Tensor:
    """Log-probabilities [P, N, keep, V] of P prompts of one bucket, each under every one of the N states `columns`."""
    first, times = states.layers[0], columns.numel()

    def attend(own: OwnAttention) -> Tensor:
        return own.merged_with_all(states.keys[first][columns], states.values[first][columns]).flatten(0, 1)

    injected = _Injected(states, columns.repeat(prompts.numel()), None, attend, prompts)
    found = _resumed(model, bucket, prompts.repeat_interleave(times), injected, shortcut)
    return found.unflatten(0, (prompts.numel(), times))


@dataclass(frozen=True, slots=True)
class _Injected:
    """The states of R rows; `attend` merges them with the first layer's attention of the prompts `asked`."""

    states: States
    rows: Tensor
    observer: Callable[[Attended], None] | None
    attend: Callable[[OwnAttention], Tensor]
    asked: Tensor


def _resumed(
    model: PreTrainedModel, bucket: Bucket, prompts: Tensor, injected: _Injected, shortcut: Shortcut
) -> Tensor:
    states, rows, observer = injected.states, injected.rows, injected.observer
    if shortcut is Shortcut.PLAIN:
        with inject(model, states, rows, observer):
            return log_probs(model, bucket.ids[prompts], bucket.keep)
    assert bucket.hidden is not None
    layers = decoder_layers(model)
    first, last = states.layers[0], len(layers) - 1
    modules = {layer.index: module for module, layer in attention_modules(model).items()}
    with ExitStack() as stack:
        stack.enter_context(_begun(layers, first, bucket.hidden[prompts]))
        # Where the first injected layer is the last one, too, its queries of earlier positions are not needed either.
        at_once = shortcut >= Shortcut.MERGE and first == last
        if shortcut >= Shortcut.MERGE:
            assert bucket.own is not None
            own = bucket.own.take(injected.asked, bucket.keep if at_once else None)
            stack.enter_context(_merged(modules[first], lambda: injected.attend(own)))
        if at_once:
            stack.enter_context(_shortened(layers[last], bucket.keep))
        tails = (
            {modules[last]: Tail()} if shortcut >= Shortcut.TAIL and last in modules and not at_once else {}
        )
        if tails:
            stack.enter_context(_tailed(layers[last], bucket.keep))
        stack.enter_context(inject(model, states, rows, observer, tail=tails))
        return log_probs(model, bucket.ids[prompts], bucket.keep)


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
def _tailed(layer: nn.Module, keep: int) -> Iterator[None]:
    """`layer` gives its last `keep` positions only."""
    whole = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            whole(hidden_states, *args, **kwargs)
        except Captured:
            return _last_positions(whole, hidden_states, keep, args, kwargs)
        raise RuntimeError(f"{type(layer).__name__} did not call its attention")

    with _replaced(layer, forward):
        yield


@contextmanager
def _shortened(layer: nn.Module, keep: int) -> Iterator[None]:
    """`layer` is called for its last `keep` positions only."""
    whole = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _last_positions(whole, hidden_states, keep, args, kwargs)

    with _replaced(layer, forward):
        yield


def _last_positions(
    whole: Callable[..., Any], hidden_states: Tensor, keep: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    length = hidden_states.shape[1]
    rest = (_cut(value, length, keep) for value in args)
    named = {name: _cut(value, length, keep) for name, value in kwargs.items()}
    return whole(hidden_states[:, -keep:], *rest, **named)


def _cut(value: Any, length: int, keep: int) -> Any:
    """The last `keep` positions of position ids [.., T] and rotary inputs [B, T, D]; masks [B, 1, T, T] as they are."""
    if isinstance(value, Tensor):
        if value.ndim == 3 and value.shape[1] == length:
            return value[:, -keep:]
        return value[..., -keep:] if value.ndim in (1, 2) and value.shape[-1] == length else value
    if isinstance(value, tuple):
        return tuple(_cut(item, length, keep) for item in value)
    return value


@contextmanager
def _merged(module: nn.Module, attend: Callable[[], Tensor]) -> Iterator[None]:
    """The attention `module` gives what `attend` [R, H, T, D] does, behind its own output projection."""
    project = next((getattr(module, name) for name in OUTPUT_PROJECTIONS if hasattr(module, name)), None)
    if project is None:
        raise NoShortcutError(f"{type(module).__name__} has none of {', '.join(OUTPUT_PROJECTIONS)}")
    dtype = next(project.parameters()).dtype

    def forward(*_: Any, **__: Any) -> tuple[Tensor, None]:
        return project(attend().transpose(1, 2).flatten(2).to(dtype)), None

    with _replaced(module, forward):
        yield
