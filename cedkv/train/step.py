"""One step of the algorithm: L = λ_on · L_on + λ_off · L_off + λ_str · L_str.

Shapes: B prompts of a minibatch, N states, A answer tokens, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cedkv.core.losses import kl_divergence
from cedkv.core.risk import cvar
from cedkv.data.encode import EncodedOn
from cedkv.evaluate import SlotMass, stress
from cedkv.injection.resume import resume
from cedkv.injection.tree import Packed
from cedkv.injection.trunk import Part, log_probs
from cedkv.memory.bank import MemoryBank
from cedkv.memory.state import States
from cedkv.models.types import CausalLM

OnKind = Literal["kl", "answer_nll"]


@dataclass(frozen=True, slots=True)
class Weights:
    """λ of the three terms."""

    on: float
    off: float
    structure: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The three losses, each a scalar, and the attention mass on the slots that ON and OFF prompts showed.

    Masses are None where no pass was run.
    """

    on: Tensor
    off: Tensor
    structure: Tensor
    slot_mass_on: float | None
    slot_mass_off: float | None

    def blended(self, on: Tensor, off: Tensor, share: float) -> Terms:
        """`share` of these ON and OFF losses, and the rest of `on` and `off`."""
        return replace(
            self, on=share * self.on + (1.0 - share) * on, off=share * self.off + (1.0 - share) * off
        )

    def total(self, weights: Weights) -> Tensor:
        """The scalar that is differentiated."""
        return weights.on * self.on + weights.off * self.off + weights.structure * self.structure


def on_loss(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    batch: Sequence[EncodedOn],
    prompts: Part,
    *,
    teacher: Sequence[Tensor],
    kind: OnKind,
) -> tuple[Tensor, float]:
    """The mean of `on_losses`, and the attention mass on the slots."""
    losses, mass = on_losses(model, bank, k, batch, prompts, teacher=teacher, kind=kind)
    return losses.mean(), mass


def on_losses(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    batch: Sequence[EncodedOn],
    prompts: Part,
    *,
    teacher: Sequence[Tensor],
    kind: OnKind,
) -> tuple[Tensor, float]:
    """KL(teacher || student) of every ON prompt, or its answer's NLL, the mean over its answer tokens.

    Args:
        batch: the prompts with their answers.
        prompts: the same, prompt and answer, in a trunk.
        teacher: per prompt the teacher's log-probabilities [A, V].

    Returns:
        the losses [B] and the attention mass on the slots.
    """
    documents = torch.tensor([row.document for row in batch], device=model.device)
    used, rows = documents.unique(return_inverse=True)
    mass = SlotMass(1, [])
    lengths = torch.tensor([len(row.answer) for row in batch], device=model.device)
    losses = torch.zeros(len(batch), device=model.device)
    for packed, student in resumed(model, bank.states(k, used), prompts, rows, mass):
        order = packed.member.unique_consecutive().tolist()
        if kind == "kl":
            found = kl_divergence(torch.cat([teacher[i] for i in order]).to(student.device), student)
        else:
            targets = torch.tensor([token for i in order for token in batch[i].answer], device=student.device)
            found = F.nll_loss(student, targets, reduction="none")
        losses = losses.index_add(0, packed.member, found / lengths[packed.member])
    return losses, mass.mean


def off_loss(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    prompts: Part,
    *,
    tail_fraction: float,
    batch_rows: int,
) -> tuple[Tensor, float]:
    """CVaR over OFF prompts of `max_i KL(student_i || base)`.

    The maximum over states is found without gradients; its gradient is that of the state that reaches it.
    """
    states = bank.states(k)
    if states.count > 1:
        worst = stress(model, states.detach(), prompts, batch_rows=batch_rows).worst_state.to(model.device)
    else:
        worst = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
    mass = SlotMass(1, [])
    divergences = [
        kl_divergence(student, prompts.trunk.base(packed)[packed.row, packed.end])
        for packed, student in resumed(model, states, prompts, worst, mass)
    ]
    return cvar(torch.cat(divergences), tail_fraction), mass.mean


def resumed(
    model: CausalLM, states: States, prompts: Part, rows: Tensor, mass: SlotMass
) -> Iterator[tuple[Packed, Tensor]]:
    """Every prompt under the state that `rows` [P] names for it, prompts of like length together.

    Yields the packed prompts, whose members are indices of `prompts`, and the student's log-probabilities [X, V] at
    each of their X positions that matter, differentiable in `states`.
    """
    trunk = prompts.trunk
    for packed in trunk.single(prompts.places):
        whose = torch.zeros_like(packed.ends[:, 0]).index_copy(0, packed.row, packed.member)
        student = resume(model, trunk, packed, states, rows[whose], observer=mass)
        yield packed, log_probs(student[packed.row, packed.end])


def loss_terms(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    *,
    on: Sequence[EncodedOn],
    on_prompts: Part,
    teacher: Sequence[Tensor],
    on_kind: OnKind,
    off: Part,
    tail_fraction: float,
    batch_rows: int,
) -> Terms:
    """The three terms on one minibatch of ON and one of OFF prompts."""
    on_term, mass_on = on_loss(model, bank, k, on, on_prompts, teacher=teacher, kind=on_kind)
    off_term, mass_off = off_loss(model, bank, k, off, tail_fraction=tail_fraction, batch_rows=batch_rows)
    return Terms(on_term, off_term, bank.structure(k).loss, mass_on, mass_off)
