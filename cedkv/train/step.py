"""One step of the algorithm: L = λ_on · L_on + λ_off · L_off + λ_str · L_str.

Shapes: B prompts of a minibatch, N states, A answer tokens, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cedkv.core.losses import kl_divergence
from cedkv.core.risk import cvar
from cedkv.data.batching import pad_left
from cedkv.data.encode import EncodedOn
from cedkv.evaluate import Ids, SlotMass, answer_log_probs, next_log_probs, stress
from cedkv.injection import inject
from cedkv.memory.bank import MemoryBank
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class Weights:
    """λ of the three terms."""

    on: float
    off: float
    structure: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The three losses, each a scalar, and the attention mass on the slots that ON and OFF prompts showed."""

    on: Tensor
    off: Tensor
    structure: Tensor
    slot_mass_on: float
    slot_mass_off: float

    def total(self, weights: Weights) -> Tensor:
        """The scalar that is differentiated."""
        return weights.on * self.on + weights.off * self.off + weights.structure * self.structure


def on_loss(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    batch: Sequence[EncodedOn],
    *,
    teacher: Sequence[Tensor],
    kind: Literal["kl", "answer_nll"],
) -> tuple[Tensor, float]:
    """Mean over ON prompts of KL(teacher || student), or of the answer's NLL, over the answer tokens.

    Args:
        teacher: per prompt the teacher's log-probabilities [A, V].

    Returns:
        the loss and the attention mass on the slots.
    """
    documents = torch.tensor([row.document for row in batch], device=model.device)
    used, rows = documents.unique(return_inverse=True)
    mass = SlotMass(1, [])
    student = answer_log_probs(
        model,
        [row.prompt for row in batch],
        [row.answer for row in batch],
        batch_rows=len(batch),
        states=bank.states(k, used),
        rows=rows,
        observer=mass,
    )
    if kind == "kl":
        losses = [kl_divergence(t.to(s.device), s).mean() for t, s in zip(teacher, student, strict=True)]
    else:
        targets = [torch.tensor(row.answer, device=model.device) for row in batch]
        losses = [F.nll_loss(s, t) for s, t in zip(student, targets, strict=True)]
    return torch.stack(losses).mean(), mass.mean


def off_loss(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    prompts: Sequence[Ids],
    *,
    tail_fraction: float,
    batch_rows: int,
) -> tuple[Tensor, float]:
    """CVaR over OFF prompts of `max_i KL(student_i || base)`.

    The maximum over states is found without gradients; its gradient is that of the state that reaches it.
    """
    states = bank.states(k)
    worst = stress(model, states.detach(), prompts, batch_rows=batch_rows).worst_state.to(model.device)
    batch = pad_left(prompts, model.device)
    with torch.no_grad():
        base = next_log_probs(model, batch)[:, 0]
    mass = SlotMass(1, [])
    with inject(model, states, worst, mass):
        student = next_log_probs(model, batch)[:, 0]
    return cvar(kl_divergence(student, base), tail_fraction), mass.mean


def loss_terms(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    *,
    on: Sequence[EncodedOn],
    teacher: Sequence[Tensor],
    on_kind: Literal["kl", "answer_nll"],
    off: Sequence[Ids],
    tail_fraction: float,
    batch_rows: int,
) -> Terms:
    """The three terms on one minibatch of ON and one of OFF prompts."""
    on_term, mass_on = on_loss(model, bank, k, on, teacher=teacher, kind=on_kind)
    off_term, mass_off = off_loss(model, bank, k, off, tail_fraction=tail_fraction, batch_rows=batch_rows)
    return Terms(on_term, off_term, bank.structure(k).loss, mass_on, mass_off)
