"""Read a document's atoms, and where prompts look in it, from the model's own forward pass.

A document is captured with its rotation counted from negative positions, so that it ends where a prompt begins: the keys
come out of the model's own rotary module already at the distance at which the prompt meets them in the teacher's context.
Whatever else asks for positions gets those of the teacher's context, from 0. Models with learned absolute positions are
captured as they stand, and their prompts follow behind.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from cedkv.injection.attention import inject, observe
from cedkv.injection.calls import AttentionCall
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, rotated, uses_rope


@torch.no_grad()
def capture(
    model: PreTrainedModel, name: str, ids: tuple[int, ...], types: tuple[str | None, ...], distance: int = 0
) -> Atoms:
    """Post-RoPE keys and values of every token of a document at every attention layer.

    Args:
        name: the document's id.
        ids: D tokens, as the teacher reads them (BOS first where it has one).
        types: atom type of each token.
        distance: how many leading tokens of a bare prompt the teacher's copy of it lacks (1 where only the bare
            prompt has a BOS, else 0); the document moves that much closer.
    """
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def keep(call: AttentionCall) -> None:
        keys[call.layer], values[call.layer] = call.key[0].clone(), call.value[0].clone()

    size = len(ids)
    positions = torch.arange(size, device=model.device)
    layers = tuple(layer.index for layer in attention_modules(model).values())
    with observe(model, layers, keep), rotated(model, distance - size):
        model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=1,
        )
    return Atoms(name, types, positions - size, keys, values)


def positions_behind(model: PreTrainedModel, whole: States, length: int, distance: int = 0) -> Tensor:
    """Position ids [1, length] of the teacher's copy of a prompt read behind `whole` documents, injected everywhere."""
    start = distance if uses_rope(model) else whole.slots
    return torch.arange(start, start + length, device=model.device)[None]


class _Seen(Exception):  # noqa: N818 - no error: the way out of a pass of which nothing more is needed
    """Every layer of interest was seen."""


@torch.no_grad()
def attention_to(
    model: PreTrainedModel,
    whole: States,
    ids: Tensor,
    share: Tensor,
    layers: tuple[int, ...],
    *,
    rows: Tensor | None = None,
    distance: int = 0,
    by_head: bool = False,
) -> Tensor:
    """Where prompts look in a document they are read behind. The pass ends with the last layer of interest.

    Args:
        whole: documents of one length (`Atoms.as_states`).
        ids: [P, T] prompts, in the teacher's copy; shorter ones padded on the right.
        share: [P, Q] how much each of the last Q of the T positions counts (those that predict the answer), in sum 1.
        layers: L layers of interest.
        rows: [P] the document of each prompt; may be left out where there is one.
        by_head: for each kv head; the layers must have as many of them.

    Returns:
        [L, G, P, D] attention weight on each document token, averaged over positions by `share` and over the query heads of
        each of the G kv heads, or over all heads (G = 1).
    """
    seen: dict[int, Tensor] = {}

    def keep(call: AttentionCall) -> None:
        if call.layer in layers:
            weights = call.last_weights(share.shape[1])[..., : call.slots]
            each = torch.einsum("phqd,pq->hpd", weights, share)
            groups = each.unflatten(0, (call.key.shape[1] if by_head else 1, -1)).mean(1)
            # A layer with a window sees the document's end only.
            seen[call.layer] = functional.pad(groups, (whole.slots - call.slots, 0))
        if len(seen) == len(layers):
            raise _Seen

    positions = positions_behind(model, whole, ids.shape[1], distance)
    with inject(model, whole, rows, observer=keep), suppress(_Seen):
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
    return torch.stack([seen[layer] for layer in layers])
