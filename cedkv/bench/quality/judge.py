"""The one judge of all methods: what the model says with a memory attached, as the tables that a run logs.

Shapes: R rows of a pass, T tokens, U stress prompts, N documents (= memories), A answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cedkv.bench import peers
from cedkv.core.losses import kl_from_logits
from cedkv.evaluate import SlotMass, StressResult, stress
from cedkv.injection.attention import armed
from cedkv.injection.trunk import log_probs
from cedkv.memory.state import States
from cedkv.tracking.record import OnRow, StressRow
from cedkv.train.experiment import Experiment
from cedkv.train.tables import answered, on_rows, stress_rows


class Attached(Protocol):
    """The frozen model with the memories of all documents at hand."""

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        """[R, keep, V] behind the last `keep` of bare prompts `ids` [R, T], row r under the memory of document `rows[r]`."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a run logs of a memory, and a gate judges."""

    on: tuple[OnRow, ...]
    stress: tuple[StressRow, ...]


def judge_states(experiment: Experiment, states: States) -> Tables:
    """Slots in the layers that cedkv injects: exactly what a run computes at its end."""
    rows = experiment.config.phase3.eval.batch_rows
    found = stress(experiment.model, states, experiment.stress, batch_rows=rows)
    return Tables(on_rows(experiment, states, SlotMass(1, [])), stress_rows(experiment, found))


def judge_passes(experiment: Experiment, attached: Attached, *, alone: bool = False) -> Tables:
    """Anything else, by whole passes over prompts of one length.

    Args:
        alone: only rows of one document may share a pass.
    """
    with armed(experiment.model):
        found = stress_by_passes(experiment, attached, experiment.stress, alone=alone)
        said = on_by_passes(experiment, attached)
    return Tables(answered(experiment, said), stress_rows(experiment, found))


@torch.no_grad()
def on_by_passes(experiment: Experiment, attached: Attached) -> list[Tensor]:
    """Log-probabilities [A, V] at the answer tokens of every ON evaluation prompt."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    prompts = experiment.encoded.on_eval
    for place, row in enumerate(prompts):
        groups[len(row.prompt), len(row.answer)].append(place)
    said: dict[int, Tensor] = {}
    for (_, answer), members in sorted(groups.items()):
        for start in range(0, len(members), experiment.config.phase3.eval.batch_rows):
            part = members[start : start + experiment.config.phase3.eval.batch_rows]
            whole = [prompts[i].prompt + prompts[i].answer[:-1] for i in part]
            ids = torch.tensor(whole, device=experiment.model.device)
            rows = torch.tensor([prompts[i].document for i in part], device=ids.device)
            said |= dict(zip(part, log_probs(attached.logits(ids, rows, answer)), strict=True))
    return [said[i] for i in range(len(prompts))]


@torch.no_grad()
def stress_by_passes(
    experiment: Experiment, attached: Attached, prompts: Sequence[tuple[int, ...]], *, alone: bool = False
) -> StressResult:
    """KL(student || base) [U, N] at the last token of every prompt under every document's memory."""
    model, batch = experiment.model, experiment.config.phase3.eval.batch_rows
    count = len(experiment.encoded.contexts)
    kl = torch.zeros(len(prompts), count)
    base_top = torch.zeros(len(prompts), dtype=torch.long)
    student_top = torch.zeros_like(kl, dtype=torch.long)
    for group in peers.groups(model, prompts, batch):
        size = len(group.places)
        base_top[group.places] = group.base.argmax(-1).cpu()
        at_once = 1 if alone else max(1, batch // size)
        for states in torch.arange(count, device=model.device).split(at_once):
            rows = states.repeat_interleave(size)
            logits = attached.logits(group.ids.repeat(len(states), 1), rows, 1)
            found, top = kl_from_logits(logits.view(1, -1, *group.base.shape), group.base[None])
            places = torch.tensor(group.places)[:, None], states.cpu()
            kl[places], student_top[places] = found[0].float().T.cpu(), top[0].T.cpu()
    return StressResult(kl, base_top, student_top)


@torch.no_grad()
def base_tops(experiment: Experiment) -> Tensor:
    """[U] the token that the bare model says next to every stress prompt."""
    prompts = [row.prompt for row in experiment.encoded.stress]
    found = torch.zeros(len(prompts), dtype=torch.long)
    for group in peers.groups(experiment.model, prompts, experiment.config.phase3.eval.batch_rows):
        found[group.places] = group.base.argmax(-1).cpu()
    return found


def bytes_of(states: States) -> int:
    """Keys, values and biases of one document, as they are stored."""
    return states.bytes_each
