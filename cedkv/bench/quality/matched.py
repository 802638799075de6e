"""Attention matching of all documents: which queries are asked, and the memories that come of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cedkv.bench.quality.matching import match
from cedkv.bench.quality.plain import captured
from cedkv.data.batching import by_similar_length, pad_left
from cedkv.injection import AttentionCall, inject
from cedkv.injection.merge import Scoring
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.train.experiment import Experiment

Asked = Literal["answers", "prompts"]
"""Reference queries: of the positions that predict an answer token, or of every position of the ON training prompts."""


@torch.no_grad()
def matched(experiment: Experiment, slots: int, layers: tuple[int, ...], asked: Asked) -> States:
    """Every document compacted to `slots` at `layers`, by what its ON training prompts ask."""
    documents = captured(experiment)
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    for layer in layers:
        first = [atoms.keys[layer][:, :slots] for atoms in documents]  # only a place for the observer to look
        stand_in = torch.stack(first)
        below = States(
            {**keys, layer: stand_in},
            {**values, layer: torch.stack([atoms.values[layer][:, :slots] for atoms in documents])},
            bias={**biases, layer: stand_in.new_zeros(stand_in.shape[:3])},
        )
        queries, scoring = _queries(experiment, below, layer, asked)
        found = [_compact(atoms, layer, queries[n], slots, scoring) for n, atoms in enumerate(documents)]
        keys[layer], values[layer], biases[layer] = (torch.stack(x) for x in zip(*found, strict=True))
    return States(keys, values, bias=biases)


def _compact(
    atoms: Atoms, layer: int, query: Tensor, slots: int, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [G, S, d], values [G, S, e] and biases [G, S] of one document, from queries [P, H, d]."""
    key, value = atoms.keys[layer], atoms.values[layer]
    per_head = query.unflatten(1, (key.shape[0], -1)).transpose(0, 1).flatten(1, 2)  # [G, P · H / G, d]
    heads = [match(per_head[g], key[g], value[g], slots, scoring) for g in range(key.shape[0])]
    parts = ([h.key for h in heads], [h.value for h in heads], [h.bias for h in heads])
    found_key, found_value, bias = (torch.stack(part).to(key) for part in parts)
    return found_key, found_value, bias


def _queries(experiment: Experiment, below: States, layer: int, asked: Asked) -> tuple[list[Tensor], Scoring]:
    """What each document's ON training prompts ask at `layer`: [P, H, d], the layers `below` it compacted."""
    model, prompts = experiment.model, experiment.encoded.on_train
    whole = [row.prompt + row.answer[:-1] for row in prompts]
    found: list[list[Tensor]] = [[] for _ in range(below.count)]
    scoring: list[Scoring] = []
    for part in by_similar_length([len(ids) for ids in whole], experiment.config.phase3.eval.batch_rows):
        counted = [len(prompts[i].answer) if asked == "answers" else len(whole[i]) for i in part]

        def see(call: AttentionCall, part: list[int] = part, counted: list[int] = counted) -> None:
            if call.layer == layer:
                scoring[:] = [Scoring(call.scaling, call.softcap)]
                for i, query, last in zip(part, call.query.transpose(1, 2), counted, strict=True):
                    found[prompts[i].document].append(query[-last:].clone())

        rows = torch.tensor([prompts[i].document for i in part], device=model.device)
        with inject(model, below, rows, see):
            batch = pad_left([whole[i] for i in part], model.device)
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
    return [torch.cat(queries) for queries in found], scoring[0]
