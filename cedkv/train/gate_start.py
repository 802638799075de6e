"""Where the slots' gates start: the scores that ON and OFF training prompts really give the slots.

Shapes: P ON positions (those that predict answer tokens), U OFF prompts, H query heads, S slots, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.config import Config
from cedkv.data.batching import by_similar_length, pad_left
from cedkv.data.encode import EncodedCorpus
from cedkv.injection.attention import AttentionCall, inject, wide
from cedkv.injection.ends import ends_of
from cedkv.injection.merge import OwnAttention
from cedkv.memory.gate import GateAims, GateStart, Seen, measured_start, own_slots
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@torch.no_grad()
def gate_start(
    config: Config, model: CausalLM, encoded: EncodedCorpus, states: States, *, sinks: int
) -> GateStart:
    """Gains and biases of every document, by what training prompts give its slots.

    Queries of ON prompts are those of the model with their document's slots injected, queries of OFF prompts those of the
    bare model: an OFF prompt that the gates of one layer keep out comes to the next one as it was.

    Args:
        states: the slots as training begins, without gates.
        sinks: how many of them, in front, are sinks: they have no gate, and compete like the prompt's own tokens.
    """
    keys, rows = config.phase3.warm_start.gate, config.phase3.eval.batch_rows
    slots = states.slots - sinks
    prompts = len(encoded.off_train)
    given_up = min(round(keys.off_share * prompts / (states.count * slots)), prompts - 1)
    aims = GateAims(keys.on_log_odds, keys.off_log_odds, keys.max_gain, given_up)
    on = _on(model, encoded, states, rows)
    off = ends_of(model, [row.prompt for row in encoded.off_train], states.layers, rows=rows)
    documents = []
    for n in range(states.count):
        mine = on.documents == n
        seen = [_behind(Seen(on.scores[layer][mine], on.lse[layer][mine]), sinks) for layer in states.layers]
        own, starts = own_slots(seen), []
        for layer, there in zip(states.layers, seen, strict=True):
            key = states.keys[layer][n]
            starts.append(
                measured_start(there, own, _behind(_given(off[layer], key), sinks), key.shape[0], aims)
            )
        documents.append(GateStart.stack(starts))
    return GateStart.stack(documents)


def _behind(seen: Seen, sinks: int) -> Seen:
    """The slots behind the sinks, and the prompt's own tokens together with the sinks."""
    if not sinks:
        return seen
    competing = torch.logaddexp(seen.lse, seen.score[..., :sinks].logsumexp(-1))
    return Seen(seen.score[..., sinks:], competing)


@dataclass(frozen=True, slots=True)
class _On:
    """[P] the document each ON position asks about, and by layer what it gives that document's slots."""

    documents: Tensor
    scores: dict[int, Tensor]  # [P, H, S]
    lse: dict[int, Tensor]  # [P, H], of the prompt's own tokens


def _on(model: CausalLM, encoded: EncodedCorpus, states: States, rows: int) -> _On:
    prompts = [row.prompt + row.answer[:-1] for row in encoded.on_train]
    counted = [len(row.answer) for row in encoded.on_train]
    scores: dict[int, list[Tensor]] = {layer: [] for layer in states.layers}
    lse: dict[int, list[Tensor]] = {layer: [] for layer in states.layers}
    documents: list[int] = []
    for part in by_similar_length([len(prompt) for prompt in prompts], rows):
        keep = max(counted[i] for i in part)
        matters = torch.tensor(
            [[q >= keep - counted[i] for q in range(keep)] for i in part], device=model.device
        )
        documents += [encoded.on_train[i].document for i in part for _ in range(counted[i])]

        def see(call: AttentionCall, keep: int = keep, matters: Tensor = matters) -> None:
            found = call.scores(keep).transpose(1, 2)[matters]  # [P, H, S + T]
            scores[call.layer].append(found[..., : call.slots])
            lse[call.layer].append(_with_sinks(found[..., call.slots :].logsumexp(-1), call))

        named = torch.tensor([encoded.on_train[i].document for i in part], device=model.device)
        with inject(model, states, named, see):
            model(
                **pad_left([prompts[i] for i in part], model.device).inputs(),
                use_cache=False,
                logits_to_keep=1,
            )
    return _On(
        torch.tensor(documents, device=model.device),
        {layer: torch.cat(found) for layer, found in scores.items()},
        {layer: torch.cat(found) for layer, found in lse.items()},
    )


def _given(own: OwnAttention, key: Tensor) -> Seen:
    """What ends of prompts give slots with `key` [G, S, D]."""
    query, lse = own.query[:, 0], own.lse[:, 0]
    key = wide(key).repeat_interleave(query.shape[1] // key.shape[0], dim=0)
    return Seen(own.scoring(query.transpose(0, 1), key.transpose(1, 2)).transpose(0, 1), lse)


def _with_sinks(lse: Tensor, call: AttentionCall) -> Tensor:
    """A family's own sinks (a score per head) take weight like a token of the prompt."""
    return lse if call.sinks is None else torch.logaddexp(lse, wide(call.sinks))
