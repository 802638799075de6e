"""One forward pass for prompts × states: rows multiply only where the first slots enter.

Below the first injected layer a prompt's hidden states are the same for every state. Within the block the model runs on
P prompts up to that layer and on P · N rows from there on; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cedkv.core.errors import UserError
from cedkv.models.layers import attention_modules


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
        f"{type(model).__name__} has no list of decoder layers to fan out in: use the plain forward pass"
    )


def _repeat(value: Any, prompts: int, times: int) -> Any:
    """Repeat every tensor that has a row for each prompt; tensors shared by all rows stay as they are."""
    if isinstance(value, Tensor):
        return (
            value.repeat_interleave(times, dim=0) if value.ndim > 1 and value.shape[0] == prompts else value
        )
    if isinstance(value, tuple):
        return tuple(_repeat(v, prompts, times) for v in value)
    if isinstance(value, list):
        return [_repeat(v, prompts, times) for v in value]
    if isinstance(value, dict):
        return {k: _repeat(v, prompts, times) for k, v in value.items()}
    return value


@contextmanager
def fan_out(model: PreTrainedModel, first_layer: int, times: int) -> Iterator[None]:
    """Within the block, each row that enters decoder layer `first_layer` becomes `times` rows, next to each other.

    Output row `p · times + n` belongs to prompt p and state n. The pass must not use a cache.
    """
    layers = decoder_layers(model)
    prompts = 0

    def enter(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal prompts
        hidden = args[0] if args else kwargs["hidden_states"]
        prompts = hidden.shape[0]
        return _repeat(args, prompts, times), _repeat(kwargs, prompts, times)

    def follow(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # The hidden states have their rows already; masks and rotary inputs come from the model, a row per prompt.
        return (*args[:1], *_repeat(args[1:], prompts, times)), {
            key: value if key == "hidden_states" else _repeat(value, prompts, times)
            for key, value in kwargs.items()
        }

    with ExitStack() as stack:
        if times > 1:
            for index in range(first_layer, len(layers)):
                hook = enter if index == first_layer else follow
                handle = layers[index].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def product_rows(prompts: int, states: int, device: torch.device) -> Tensor:
    """State index of each row of a fanned-out pass, [prompts · states]: 0 … N−1, again for every prompt."""
    return torch.arange(states, device=device).repeat(prompts)
