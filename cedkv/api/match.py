"""Whether a memory is used with what it was made for; where it is not, what differs."""

from __future__ import annotations

from collections.abc import Iterator

from cedkv.core.errors import UserError
from cedkv.memory.export import Origin
from cedkv.memory.state import States
from cedkv.models.identity import fingerprint, known_fingerprint, settings_of, tokenizer_hash
from cedkv.models.layers import attention_modules
from cedkv.models.types import CausalLM, Tokenizer

_SHOWN = 4


def check_layers(states: States, model: CausalLM) -> None:
    """Raise `UserError` where the model lacks a layer that slots are for."""
    attention = {layer.index for layer in attention_modules(model).values()}
    missing = sorted(set(states.layers) - attention)
    if missing:
        raise UserError(
            f"the memory has slots for layers {missing}, but attention layers of this {model.config.model_type} are "
            f"{sorted(attention)}: use the model it was made for"
        )


def check_model(origin: Origin, model: CausalLM) -> None:
    """Raise `UserError` where the model computes anything else than the one a memory was made for."""
    if known_fingerprint(model) == origin.model_fingerprint:
        return
    raise UserError(
        f"the memory was made for another model{f' ({origin.model})' if origin.model else ''}: {'; '.join(_differences(origin, model))}. "
        "Load that model, or give check=False to go on without anything known of ON and OFF"
    )


def _differences(origin: Origin, model: CausalLM) -> Iterator[str]:
    if not origin.model_settings:  # formats before 4 keep no more than the fingerprint
        yield f"its fingerprint is {origin.model_fingerprint[:12]}, this one's {known_fingerprint(model)[:12]}"
        return
    dtype, settings = str(model.dtype).removeprefix("torch."), settings_of(model)
    if dtype != origin.dtype:
        yield f"its type is {origin.dtype}, this one's {dtype}"
    names = sorted({*settings, *origin.model_settings})
    other = [name for name in names if settings.get(name) != origin.model_settings.get(name)]
    for name in other[:_SHOWN]:
        yield f"its {name} is {origin.model_settings.get(name)!r}, this one's {settings.get(name)!r}"
    if len(other) > _SHOWN:
        yield f"{len(other) - _SHOWN} more settings differ"
    if dtype == origin.dtype and fingerprint(model, origin.model_settings) != origin.model_fingerprint:
        yield "its weights are others"


def check_tokenizer(origin: Origin, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where the tokenizer cuts text in another way."""
    found = tokenizer_hash(tokenizer)
    if origin.tokenizer_sha256 and found != origin.tokenizer_sha256:
        raise UserError(
            f"the memory was made with another tokenizer (hash {origin.tokenizer_sha256[:12]}, this one's {found[:12]}): use the "
            f"tokenizer of {origin.model!r}"
        )
