"""Attention at the positions that matter: what the ends of prompts ask, get and weigh at every injected layer.

Shapes: P ends, H query heads, D head size of keys, E of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cedkv.core.team import ALONE, Team
from cedkv.data.batching import by_similar_length, pad_left
from cedkv.injection.attention import observe
from cedkv.injection.calls import AttentionCall
from cedkv.injection.merge import OwnAttention, own_attention
from cedkv.injection.storage import Room
from cedkv.injection.tree import Ids

Ends = Mapping[int, OwnAttention]
"""By layer: query [P, 1, H, D], output [P, 1, H, E], log-sum-exp [P, 1, H], in float32 at least."""


@torch.no_grad()
def ends_of(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    layers: tuple[int, ...],
    *,
    rows: int,
    keep: Sequence[int] | None = None,
    team: Team = ALONE,
) -> Ends:
    """The last `keep` positions of every prompt (the last one by default), prompt by prompt in their order.

    Args:
        rows: prompts of one forward pass.
        team: the processes that share the passes.
    """
    counts = (1,) * len(prompts) if keep is None else tuple(keep)
    first = torch.tensor([0, *counts]).cumsum(0)
    found: dict[int, dict[str, Tensor]] = {}
    scoring = {}
    parts = list(by_similar_length([len(prompt) for prompt in prompts], rows))
    dealt = set(team.deal([sum(len(prompts[i]) for i in part) for part in parts]))
    room = Room(team=team)
    # The first pass tells every process what there is to keep.
    for number in sorted(dealt | {0}):
        part = parts[number]
        widest = max(counts[i] for i in part)
        matters = torch.tensor([[q >= widest - counts[i] for q in range(widest)] for i in part]).to(
            model.device
        )
        places = torch.cat([torch.arange(int(first[i]), int(first[i + 1])) for i in part]).to(model.device)

        def see(
            call: AttentionCall,
            widest: int = widest,
            matters: Tensor = matters,
            places: Tensor = places,
            mine: bool = number in dealt,
        ) -> None:
            own = own_attention(call, widest)
            scoring[call.layer] = own.scoring
            kept = found.setdefault(call.layer, {})
            for name in ("query", "out", "lse"):
                x = getattr(own, name)[matters]
                if name not in kept:
                    kept[name] = room.empty((int(first[-1]), *x.shape[1:]), x.dtype, x.device)
                if mine:
                    kept[name][places] = x

        batch = pad_left([prompts[i] for i in part], model.device)
        with observe(model, layers, see):
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
    room.share(x for layer in sorted(found) for x in found[layer].values())
    return {
        layer: OwnAttention(
            kept["query"][:, None], kept["out"][:, None], kept["lse"][:, None], scoring[layer]
        )
        for layer, kept in found.items()
    }
