"""Which layers attend, and what a layer scope names.

Scopes count *attention* layers: in a hybrid where one layer of four attends, `top25` is a quarter of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cedkv.core.errors import UserError


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention layer: the index the model gives it and its sliding window in tokens (None: global).

    `chunk`: tokens of the blocks that a layer without a window may attend within (Llama 4); None where there are none.
    """

    index: int
    window: int | None
    chunk: int | None = None


_FOUND: WeakKeyDictionary[PreTrainedModel, dict[nn.Module, AttentionLayer]] = WeakKeyDictionary()
_DECODERS: WeakKeyDictionary[PreTrainedModel, ref[PreTrainedModel]] = WeakKeyDictionary()


def attention_modules(model: PreTrainedModel) -> Mapping[nn.Module, AttentionLayer]:
    """The decoder's attention modules in layer order; looked for once per model, whose modules must stay what they are.

    They are recognised by what the attention interface itself relies on: a `layer_idx` and a causal flag.
    """
    found = _FOUND.get(model)
    if found is None:
        found = _FOUND[model] = _attention_modules(model)
    return MappingProxyType(found)


def _attention_modules(model: PreTrainedModel) -> dict[nn.Module, AttentionLayer]:
    found: dict[nn.Module, AttentionLayer] = {}
    for module in model.modules():
        index = vars(module).get("layer_idx")
        if not isinstance(index, int) or getattr(module, "is_cross_attention", False):
            continue
        if getattr(module, "is_causal", False):
            config = model.config.get_text_config()
            kind = _kind(config, index)
            chunk = config.attention_chunk_size if kind == "chunked_attention" else None
            found[module] = AttentionLayer(index, _window(config, module, kind), chunk)
    return dict(sorted(found.items(), key=lambda item: item[1].index))


def _kind(config: PreTrainedConfig, index: int) -> str | None:
    """What the configuration calls this layer."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else str(kinds[index])


def _window(config: PreTrainedConfig, module: nn.Module, kind: str | None) -> int | None:
    """None where the configuration says that this layer has none, else the module's own, else the configuration's."""
    if kind not in (None, "sliding_attention"):
        return None  # EXAONE 4 gives its global attention modules the number, too
    window: int | None = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    return window


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost of transformers' models that holds all attention: in one that also sees, its language model."""
    known = _DECODERS.get(model)
    decoder = None if known is None else known()
    if decoder is None:
        attention, decoder = set(attention_modules(model)), model
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and attention and attention <= set(module.modules()):
                decoder = module
        _DECODERS[model] = ref(decoder)
    return decoder


@contextmanager
def in_one_piece(model: nn.Module) -> Iterator[None]:
    """Within the block the output head gets its input in one piece.

    With `logits_to_keep` transformers hands it a slice, whose rows do not lie side by side: torch multiplies these row by
    row, several times slower and to the same numbers.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' models and of peft's
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the model's decoder layers: the one whose members hold the attention modules."""
    attention = set(attention_modules(model))
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != count:
            continue
        if attention <= set(module.modules()):
            return module
    raise UserError(
        f"model family {model.config.model_type!r} has no list of decoder layers that hold its attention: use another family"
    )


def uses_rope(model: PreTrainedModel) -> bool:
    """Whether positions enter by rotation, so that a key can be moved to another distance."""
    return bool(_rotary(model))


def _rotary(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if "rotary" in type(module).__name__.lower()]


@contextmanager
def rotated(model: PreTrainedModel, by: int) -> Iterator[None]:
    """Within the block, rotation takes every token `by` positions further on than it is."""

    def moved(value: Any) -> Any:
        return value + by if isinstance(value, Tensor) and not value.is_floating_point() else value

    def move(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}

    with ExitStack() as stack:
        for module in _rotary(model):
            stack.callback(module.register_forward_pre_hook(move, with_kwargs=True).remove)
        yield


def resolve_scope(scope: str | list[int] | tuple[int, ...], layers: list[AttentionLayer]) -> tuple[int, ...]:
    """Layer indices, ascending, that `scope` names.

    Args:
        scope: `all`, `full_attention`, `topNN` (the last `ceil(NN/100 · n)` attention layers) or explicit indices.
        layers: the model's attention layers in order.

    Raises:
        UserError: the scope names a layer that does not attend, or none at all.
    """
    indices = [layer.index for layer in layers]
    if not isinstance(scope, str):
        unknown = sorted(set(scope) - set(indices))
        if unknown:
            raise UserError(
                f"layer_scope names layer {unknown[0]}, but attention layers are {indices}: choose among them"
            )
        chosen = sorted(set(scope))
    elif scope == "all":
        chosen = indices
    elif scope == "full_attention":
        chosen = [layer.index for layer in layers if layer.window is None]
    else:
        share = int(scope.removeprefix("top"))
        chosen = indices[-share * len(indices) // 100 :]  # the last ceil(share · n), in whole numbers
    if not chosen:
        raise UserError(
            f"layer_scope {scope!r} names no layer of this model: use topNN, all or explicit indices"
        )
    return tuple(chosen)
