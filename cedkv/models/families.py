"""Model families that slots cannot reach: what tells them before their weights are read, and how they are refused.

What a family needs is in docs/architectures.md, with every family's outcome. Most of it shows in the model itself, here or in
`cedkv.injection.probe`; `NAMED` are those in which it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from cedkv.core.errors import UserError
from cedkv.models.layers import attention_modules

NO_ATTENTION = "has no attention"
UNROUTED = "does not route its attention through transformers' attention interface"
RECURRENT = "keeps part of what it reads in recurrent or convolutional states"
NAMED: Mapping[str, str] = {
    "beam": "scales every query by its position",
    "moshi": "attends further back without a cache than with one",
    "rwkv": NO_ATTENTION,
    "xlstm": NO_ATTENTION,
}
"""Families that have to be known by name, with what is wrong; as of the transformers that `constraints.txt` pins."""


class UnreachableError(UserError):
    """A model that slots cannot reach; `reason` says why, in words that follow the family's name."""

    def __init__(self, family: str, reason: str) -> None:
        super().__init__(
            f"model family {family!r} {reason}, so that slots cannot stand in for a document there: use a family that takes "
            "slots (llama, qwen3, gemma3, mistral, gpt2 and many more, see docs/architectures.md)"
        )
        self.reason = reason


def refuse_unrouted(config: PreTrainedConfig) -> None:
    """Refuse, by its configuration alone, a model that slots cannot reach.

    Raises:
        UnreachableError: what tells it.
    """
    family = config.model_type
    if family in NAMED:
        raise UnreachableError(family, NAMED[family])
    decoder = config.get_text_config()
    if not all(made._can_set_attn_implementation() for made in _classes(decoder)):  # noqa: SLF001 - there is no public name
        raise UnreachableError(family, UNROUTED)
    kept = _kept_by_cache(decoder)
    recurrent = [hasattr(layer, "recurrent_states") for layer in kept]
    if any(recurrent):
        attends = any(hasattr(layer, "keys") for layer in kept)
        raise UnreachableError(family, RECURRENT if attends else NO_ATTENTION)


def refuse_without_attention(model: PreTrainedModel) -> None:
    """Refuse a model in which no module is recognised as causal attention."""
    if not attention_modules(model):
        raise UnreachableError(
            model.config.model_type, "has no attention modules that are known to be causal"
        )


def _classes(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
    """What transformers makes of a decoder's configuration; nothing where it does not know it."""
    for mapping in (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        made: Any = mapping.get(type(config), None)
        if made is not None:
            return made if isinstance(made, tuple) else (made,)
    return ()


def _kept_by_cache(config: PreTrainedConfig) -> list[Any]:
    """What a cache would hold of each layer; nothing where the configuration does not say."""
    try:
        return list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
