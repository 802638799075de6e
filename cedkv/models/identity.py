"""What makes a model and a tokenizer the ones that a memory was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_NOT_COMPUTED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Settings of a configuration that say where it is from and how it was stored."""

_KNOWN: WeakKeyDictionary[PreTrainedModel, tuple[int, str]] = WeakKeyDictionary()


def settings_of(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration without paths and versions, in JSON's types."""
    config = model.config.to_dict()
    for key in _NOT_COMPUTED:
        config.pop(key, None)
    found: dict[str, Any] = json.loads(json.dumps(config, sort_keys=True, default=str))
    return found


def fingerprint(model: PreTrainedModel, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over what the model computes: its settings (by default its own) and every weight's bytes."""
    described = json.dumps(settings_of(model) if settings is None else settings, sort_keys=True)
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def known_fingerprint(model: PreTrainedModel) -> str:
    """`fingerprint`, computed once as long as no weight is replaced or written to."""
    weights = [*model.parameters(), *model.buffers()]
    stand = hash(tuple((x.data_ptr(), x._version) for x in weights))  # noqa: SLF001 - torch's own count of writes
    known = _KNOWN.get(model)
    if known is None or known[0] != stand:
        known = _KNOWN[model] = stand, fingerprint(model)
    return known[1]


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 over how a tokenizer cuts text; how it pads and truncates, which calls change, is no part of that."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("padding", "truncation"):
        content.pop(key, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
