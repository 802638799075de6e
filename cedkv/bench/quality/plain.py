"""Ways without fitting: no memory, the whole document in front of every prompt, slots drawn at random."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from cedkv.bench.quality.judge import Tables, base_tops, stress_by_passes
from cedkv.evaluate import StressResult
from cedkv.injection import capture, inject, positions_behind
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.models.layers import in_one_piece
from cedkv.train.experiment import Experiment
from cedkv.train.tables import answered, stress_rows


def captured(experiment: Experiment) -> list[Atoms]:
    """Every document's tokens at all layers, at the distance at which prompts meet them."""
    encoded = experiment.encoded
    return [capture(experiment.model, c.id, c.ids, c.types, encoded.skipped) for c in encoded.contexts]


def judge_bare(experiment: Experiment) -> Tables:
    """The base against itself: what it said before, and no drift at all."""
    kl = torch.zeros(len(experiment.encoded.stress), len(experiment.encoded.contexts))
    top = base_tops(experiment)
    found = StressResult(kl, top, top[:, None].expand_as(kl))
    return Tables(answered(experiment, experiment.base_eval), stress_rows(experiment, found))


class FullContext:
    """Every document whole, in front of the prompt as the teacher reads it."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    @cached_property
    def documents(self) -> list[States]:
        """Each as one state at all layers."""
        return [atoms.as_states() for atoms in captured(self._experiment)]

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        """[R, keep, V]; all rows are of one document, which comes once."""
        model, skipped = self._experiment.model, self._experiment.encoded.skipped
        whole, shown = self.documents[int(rows[0])], ids[:, skipped:]
        positions = positions_behind(model, whole, shown.shape[1], skipped)
        with inject(model, whole), in_one_piece(model):
            found = model(input_ids=shown, position_ids=positions, use_cache=False, logits_to_keep=keep)
        return found.logits[:, -keep:]


def judge_full(experiment: Experiment, attached: FullContext) -> Tables:
    """ON: the teacher. OFF: the document in front of prompts that it does not concern."""
    prompts = [row.prompt for row in experiment.encoded.stress]
    found = stress_by_passes(experiment, attached, prompts, alone=True)
    return Tables(answered(experiment, experiment.teacher_eval), stress_rows(experiment, found))


def random_slots(experiment: Experiment, seed: int) -> States:
    """As many of every document's tokens as cedkv has slots, drawn at random, at cedkv's layers."""
    slots, layers = experiment.config.phase3.memory.slots, experiment.bank.spec.injection
    generator = torch.Generator().manual_seed(seed)
    found = []
    for atoms in captured(experiment):
        allowed = torch.tensor([i for i, kind in enumerate(atoms.types) if kind is not None])
        pick = allowed[torch.randperm(len(allowed), generator=generator)[:slots]]
        keys, values = (
            {i: x[i][None, :, pick.to(x[i].device)] for i in layers} for x in (atoms.keys, atoms.values)
        )
        found.append(States(keys, values))
    return States.stack(found)
