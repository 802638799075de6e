"""Read a document's atoms, and where prompts look in it, from the model's own forward pass.

A document is captured at negative positions, so that it ends where a prompt begins: the keys come out of the model's
own rotary module already at the distance at which the prompt meets them in the teacher's context. Models with learned
absolute positions are captured from position 0, as they stand, and their prompts follow behind.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cedkv.injection.attention import AttentionCall, inject, observe
from cedkv.memory.atoms import Atoms
from cedkv.models.layers import attention_modules, uses_rope


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
    behind = torch.arange(size, device=model.device) - size
    positions = behind + (distance if uses_rope(model) else size)
    layers = tuple(layer.index for layer in attention_modules(model).values())
    with observe(model, layers, keep):
        model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=1,
        )
    return Atoms(name, types, behind, keys, values)


def positions_behind(model: PreTrainedModel, atoms: Atoms, length: int, distance: int = 0) -> Tensor:
    """Position ids [1, length] of the teacher's copy of a prompt read behind `atoms` (all of them injected)."""
    start = distance if uses_rope(model) else len(atoms.types)
    return torch.arange(start, start + length, device=model.device)[None]


@torch.no_grad()
def attention_to(
    model: PreTrainedModel,
    atoms: Atoms,
    ids: Tensor,
    counted: int,
    layers: tuple[int, ...],
    *,
    distance: int = 0,
) -> Tensor:
    """Where prompts look in a document they are read behind.

    Args:
        ids: [P, T] prompts of one length, in the teacher's copy.
        counted: how many of the last positions count (those that predict the answer).
        layers: L layers of interest.

    Returns:
        [L, P, D] attention weight on each document token, averaged over heads and the counted positions.
    """
    size = len(atoms.types)
    seen = torch.zeros(len(layers), ids.shape[0], size, device=model.device)

    def keep(call: AttentionCall) -> None:
        if call.layer in layers:
            seen[layers.index(call.layer)] = call.last_weights(counted)[..., :size].mean((1, 2))

    positions = positions_behind(model, atoms, ids.shape[1], distance)
    with inject(model, atoms.as_states(), observer=keep):
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=counted)
    return seen
