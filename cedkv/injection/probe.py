"""Checks at load that injection does what it says on this very model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence
from cedkv.injection.attention import inject, observe
from cedkv.injection.calls import AttentionCall
from cedkv.injection.capture import capture, positions_behind
from cedkv.memory.state import States
from cedkv.models.families import UnreachableError, refuse_without_attention
from cedkv.models.layers import attention_modules

DOCUMENT, PROMPT = 8, 4
EXACT = 1e-4
"""Nats by which the same thing may differ where it is computed in two ways in float32."""
ROUNDED, SHARE_ROUNDED = 0.05, 0.25
"""In half precision: nats, and the share of what the document itself changes; both must be exceeded."""


@torch.no_grad()
def check_routed(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Refuse a model in which `layers` do not attend through the interface, or that does not take slots for what they are.

    Eight passes over a dozen tokens: the attention calls are counted, random slots are injected, and a document injected
    whole, at every layer that attends, is compared with the document read.

    Raises:
        UserError: names the family, what was found and what to do.
    """
    refuse_without_attention(model)
    ids = 1 + torch.arange(DOCUMENT + PROMPT, device=model.device)[None]
    base = _logits(model, ids)
    calls = _calls(model, ids, layers)
    with inject(model, _random_slots(model, {layer: calls[layer] for layer in layers})):
        moved = _logits(model, ids)
    if torch.equal(moved, base):
        raise UnreachableError(model.config.model_type, "gives the same logits whatever is injected")
    assert torch.equal(_logits(model, ids), base), "leaving the injection must restore the model bitwise"
    _check_document(model, ids, base)


def _logits(model: PreTrainedModel, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Log-probabilities [1, T, V] in float32 at least."""
    logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _calls(model: PreTrainedModel, ids: Tensor, layers: Sequence[int]) -> Mapping[int, AttentionCall]:
    """The one call of each attention layer, with a key for each token."""
    family, seen = model.config.model_type, defaultdict[int, list[AttentionCall]](list)
    everything = [layer.index for layer in attention_modules(model).values()]
    with observe(model, tuple(everything), lambda call: seen[call.layer].append(call)):
        _logits(model, ids)
    silent = [layer for layer in layers if layer not in seen]
    if silent:
        raise UserError(
            f"model family {family!r}: layers {silent} do not call transformers' attention interface, so slots would be "
            "ignored there: choose other layers in phase3.layer_scope or another family"
        )
    if len(set(everything)) < len(everything) or any(len(calls) > 1 for calls in seen.values()):
        raise UnreachableError(family, "attends several times in a pass under one layer number")
    if any(calls[0].key.shape[2] != ids.shape[1] for calls in seen.values()):
        raise UnreachableError(family, "attends to other keys than one for each token")
    return {layer: calls[0] for layer, calls in seen.items()}


def _random_slots(model: PreTrainedModel, calls: Mapping[int, AttentionCall]) -> States:
    """Two slots a layer, of the size of the layer's own keys and values."""
    generator = torch.Generator().manual_seed(0)

    def like(x: Tensor) -> Tensor:
        shape = (1, x.shape[1], 2, x.shape[3])
        noise = torch.randn(shape, generator=generator).to(device=model.device, dtype=x.dtype)
        return noise * x.float().std().to(x.dtype)

    keys = {layer: like(call.key) for layer, call in calls.items()}
    return States(keys, {layer: like(call.value) for layer, call in calls.items()})


def _check_document(model: PreTrainedModel, ids: Tensor, read: Tensor) -> None:
    """Compare the prompt behind a document that is `read` with the prompt to which the document is injected."""
    document, prompt = ids[:, :DOCUMENT], ids[:, DOCUMENT:]
    read, alone = read[:, DOCUMENT:], _logits(model, prompt)
    numbered = _logits(model, prompt, torch.arange(PROMPT, device=model.device)[None])
    if _differs(model, alone, numbered, read):
        raise UnreachableError(model.config.model_type, "does not number positions from 0")
    atoms = capture(model, "probe", tuple(document[0].tolist()), ("content",) * DOCUMENT)
    whole = atoms.as_states()
    with inject(model, whole):
        injected = _logits(model, prompt, positions_behind(model, whole, PROMPT))
    if _differs(model, read, injected, alone):
        behind = _logits(model, prompt, torch.arange(DOCUMENT, ids.shape[1], device=model.device)[None])
        reason = (
            "does not take position ids"
            if torch.equal(behind, alone)
            else "takes more from a document than its keys and values"
        )
        raise UnreachableError(model.config.model_type, reason)


def _differs(model: PreTrainedModel, wanted: Tensor, found: Tensor, other: Tensor) -> bool:
    """Whether log-probabilities that should be equal are not; `other` are some that are known to be different."""
    error = float(kl_divergence(wanted, found).max())
    if model.dtype in (torch.float32, torch.float64):
        return not error <= EXACT
    return not error <= max(ROUNDED, SHARE_ROUNDED * float(kl_divergence(wanted, other).max()))
