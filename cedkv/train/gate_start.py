"""Where the slots' gates start: the scores that ON and OFF training prompts really give the slots.

Shapes: P ON positions (those that predict answer tokens), U OFF prompts, H query heads, S slots, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.config import Config
from cedkv.core.team import ALONE, Team
from cedkv.data.batching import by_similar_length, pad_left
from cedkv.data.encode import EncodedCorpus
from cedkv.injection import AttentionCall, inject
from cedkv.injection.calls import wide
from cedkv.injection.ends import ends_of
from cedkv.injection.merge import OwnAttention
from cedkv.memory.gate import GateAims, GateStart, Seen, measured_start, own_slots
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@torch.no_grad()
def gate_start(
    config: Config,
    model: CausalLM,
    encoded: EncodedCorpus,
    states: States,
    *,
    sinks: int,
    team: Team = ALONE,
) -> GateStart:
    """Gains and biases of every document, by what training prompts give its slots.

    Queries of ON prompts are those of the model with their document's slots injected, queries of OFF prompts those of the
    bare model: an OFF prompt that the gates of one layer keep out comes to the next one as it was.

    Args:
        states: the slots as training begins, without gates.
        sinks: how many of them, in front, are sinks: they have no gate, and compete like the prompt's own tokens.
        team: the processes that share passes and documents.
    """
    keys, rows = config.phase3.warm_start.gate, config.phase3.eval.batch_rows
    slots = states.slots - sinks
    prompts = len(encoded.off_train)
    given_up = min(round(keys.off_share * prompts / (states.count * slots)), prompts - 1)
    aims = GateAims(keys.on_log_odds, keys.off_log_odds, keys.max_gain, given_up)
    on = _on(model, encoded, states, rows, team)
    off = ends_of(model, [row.prompt for row in encoded.off_train], states.layers, rows=rows, team=team)
    first = states.layers[0]
    groups, heads = states.keys[first].shape[1], on.scores[first].shape[1]
    whole = GateStart(
        *(
            states.keys[first].new_zeros(
                states.count, len(states.layers), h, slots, dtype=on.lse[first].dtype
            )
            for h in (groups, heads, heads)
        )
    )
    for n in team.deal([1.0] * states.count):
        mine = on.documents == n
        seen = [_behind(Seen(on.scores[layer][mine], on.lse[layer][mine]), sinks) for layer in states.layers]
        starts = []
        for layer, there, own in zip(
            states.layers, seen, own_slots(seen, config.phase3.mix.k_anchor.share, groups), strict=True
        ):
            given = _behind(_given(off[layer], states.keys[layer][n]), sinks)
            starts.append(measured_start(there, own, given, groups, aims))
        for into, found in zip(whole.tensors, GateStart.stack(starts).tensors, strict=True):
            into[n] = found
    team.merge(*whole.tensors)
    return whole


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


def _on(model: CausalLM, encoded: EncodedCorpus, states: States, rows: int, team: Team) -> _On:
    prompts = [row.prompt + row.answer[:-1] for row in encoded.on_train]
    counted = [len(row.answer) for row in encoded.on_train]
    first = torch.tensor([0, *counted]).cumsum(0)
    scores: dict[int, Tensor] = {}
    lse: dict[int, Tensor] = {}
    parts = list(by_similar_length([len(prompt) for prompt in prompts], rows))
    dealt = set(team.deal([sum(len(prompts[i]) for i in part) for part in parts]))
    # The first pass tells every process what there is to keep.
    for number in sorted(dealt | {0}):
        part = parts[number]
        keep = max(counted[i] for i in part)
        matters = torch.tensor(
            [[q >= keep - counted[i] for q in range(keep)] for i in part], device=model.device
        )
        places = torch.cat([torch.arange(int(first[i]), int(first[i + 1])) for i in part]).to(model.device)

        def see(
            call: AttentionCall,
            keep: int = keep,
            matters: Tensor = matters,
            places: Tensor = places,
            mine: bool = number in dealt,
        ) -> None:
            found = call.scores(keep).transpose(1, 2)[matters]  # [P, H, S + T]
            given, own = found[..., : call.slots], _with_sinks(found[..., call.slots :].logsumexp(-1), call)
            for kept, x in ((scores, given), (lse, own)):
                into = kept.setdefault(call.layer, x.new_zeros(int(first[-1]), *x.shape[1:]))
                if mine:
                    into[places] = x

        named = torch.tensor([encoded.on_train[i].document for i in part], device=model.device)
        with inject(model, states, named, see):
            model(
                **pad_left([prompts[i] for i in part], model.device).inputs(),
                use_cache=False,
                logits_to_keep=1,
            )
    team.merge(*(kept[layer] for kept in (scores, lse) for layer in states.layers))
    documents = torch.tensor([row.document for row in encoded.on_train], device=model.device)
    return _On(documents.repeat_interleave(torch.tensor(counted, device=model.device)), scores, lse)


def _given(own: OwnAttention, key: Tensor) -> Seen:
    """What ends of prompts give slots with `key` [G, S, D]."""
    query, lse = wide(own.query[:, 0]), own.lse[:, 0]
    key = wide(key).repeat_interleave(query.shape[1] // key.shape[0], dim=0)
    return Seen(own.scoring(query.transpose(0, 1), key.transpose(1, 2)).transpose(0, 1), lse)


def _with_sinks(lse: Tensor, call: AttentionCall) -> Tensor:
    """A family's own sinks (a score per head) take weight like a token of the prompt."""
    return lse if call.sinks is None else torch.logaddexp(lse, wide(call.sinks))
