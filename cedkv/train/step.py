"""One step of the algorithm: L = λ_on · L_on + λ_off · L_off + λ_str · L_str.

Shapes: B prompts of a minibatch, N states, A answer tokens, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cedkv.core.losses import kl_divergence
from cedkv.core.risk import tail_weights
from cedkv.data.encode import EncodedOn
from cedkv.evaluate import SlotMass, stress
from cedkv.injection.resume import resume
from cedkv.injection.tree import Packed
from cedkv.injection.trunk import Part, log_probs
from cedkv.memory.bank import MemoryBank
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
    """The three losses, each a scalar, and the attention mass on the slots that ON prompts and the OFF tail showed.

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
    rows: int | None = None,
) -> tuple[Tensor, float]:
    """The mean of `on_losses`, differentiable, and the attention mass on the slots."""
    found = on_losses(model, bank, k, batch, prompts, teacher=teacher, kind=kind, rows=rows)
    return found.total, found.slot_mass


def on_losses(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    batch: Sequence[EncodedOn],
    prompts: Part,
    *,
    teacher: Sequence[Tensor],
    kind: OnKind,
    rows: int | None = None,
) -> Weighed:
    """KL(teacher || student) of every ON prompt, or its answer's NLL, the mean over its answer tokens; and their mean.

    Args:
        batch: the prompts with their answers.
        prompts: the same, prompt and answer, in a trunk.
        teacher: per prompt the teacher's log-probabilities [A, V].
        rows: prompts of one pass, all by default.
    """
    documents = torch.tensor([row.document for row in batch], device=model.device)
    lengths = torch.tensor([len(row.answer) for row in batch], device=model.device)

    def score(packed: Packed, student: Tensor) -> Tensor:
        order = packed.member.unique_consecutive().tolist()
        if kind == "kl":
            found = kl_divergence(torch.cat([teacher[i] for i in order]).to(student.device), student)
        else:
            targets = torch.tensor([token for i in order for token in batch[i].answer], device=student.device)
            found = F.nll_loss(student, targets, reduction="none")
        return found / lengths[packed.member]

    weights = torch.full((len(batch),), 1 / len(batch), device=model.device)
    return weighed(model, bank, k, prompts, documents=documents, weights=weights, score=score, rows=rows)


def off_loss(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    prompts: Part,
    *,
    tail_fraction: float,
    batch_rows: int,
    rows: int | None = None,
) -> tuple[Tensor, float]:
    """CVaR over OFF prompts of `max_i KL(student_i || base)`, and the attention mass of its tail on the slots.

    The maximum over states and the tail are found without gradients. The gradient is that of the states that reach the
    maximum, so only the prompts of the tail, each under its one state, get a pass that is differentiated.

    Args:
        batch_rows: rows (prompt x state) of a pass that searches.
        rows: prompts of a pass that is differentiated, all by default.
    """
    with torch.no_grad():
        found = stress(model, bank.states(k), prompts, batch_rows=batch_rows)
    weights = tail_weights(found.delta, tail_fraction)
    tail = weights.nonzero().flatten()
    trunk = prompts.trunk

    def score(packed: Packed, student: Tensor) -> Tensor:
        return kl_divergence(student, trunk.base(packed)[packed.row, packed.end])

    worst, shares = (x[tail].to(model.device) for x in (found.worst_state, weights))
    result = weighed(
        model, bank, k, prompts.take(tail.tolist()), documents=worst, weights=shares, score=score, rows=rows
    )
    return result.total, result.slot_mass


@dataclass(frozen=True, slots=True)
class Weighed:
    """What some prompts scored, [P], and the weighted sum, a scalar that is differentiable where gradients are on.

    `slot_mass`: attention mass on the slots at the last position, the mean over passes and layers.
    """

    values: Tensor
    total: Tensor
    slot_mass: float


def weighed(
    model: CausalLM,
    bank: MemoryBank,
    k: int,
    prompts: Part,
    *,
    documents: Tensor,
    weights: Tensor,
    score: Callable[[Packed, Tensor], Tensor],
    rows: int | None,
) -> Weighed:
    """Score prompts, each under the state of one document, in passes that are differentiated one by one.

    A step needs the memory of one pass. A team shares the passes, and adds their gradients in one order: its sum is that of
    a process alone, bit for bit.

    Args:
        documents: [P] whose state is injected.
        weights: [P] of each prompt in the sum.
        score: gives for each of the positions [X] that matter in a packed pass, of the student's log-probabilities [X, V],
            its part of the prompt's score.
        rows: prompts of one pass, all by default.
    """
    trunk, learned = prompts.trunk, [p for p in bank.parameters() if p.requires_grad]
    passes = trunk.single(prompts.places, rows)
    learns = torch.is_grad_enabled()
    size = sum(p.numel() for p in learned) if learns else 0
    values = torch.zeros(len(prompts), device=model.device)
    masses = torch.zeros(passes.total, dtype=torch.float64)
    gradients = torch.zeros(passes.total, size, dtype=learned[0].dtype, device=model.device)
    for number, packed in passes:
        mass = SlotMass(1, [])
        whose = torch.zeros_like(packed.ends[:, 0]).index_copy(0, packed.row, packed.member)
        used, states = documents[whose].unique(return_inverse=True)
        student = resume(model, trunk, packed, bank.states(k, used), states, observer=mass)
        found = score(packed, log_probs(student[packed.row, packed.end]))
        mine = torch.zeros_like(values, dtype=found.dtype).index_add(0, packed.member, found)
        values += mine.detach()
        masses[number] = mass.mean
        if learns and mine.requires_grad:  # anchors without gates learn nothing from a pass
            gradients[number] = _gradient((mine * weights).sum(), learned, model.dtype)
    trunk.team.merge(values, masses, gradients)
    total = (values * weights).sum()
    if learns:
        total = _Known.apply(total, gradients.sum(0), *learned)
    return Weighed(values, total, masses.mean().item())


LOSS_SCALES = (2.0**16, 2.0**8, 1.0)
"""What a loss is multiplied by before float16 passes its gradient on: under 6e-8 that is zero, over 65504 infinite."""


def _gradient(loss: Tensor, learned: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The gradient by `learned`, one flat vector; through a float16 model at the largest scale at which it is finite."""
    scales = LOSS_SCALES if dtype is torch.float16 else (1.0,)
    for scale in scales:
        parts = torch.autograd.grad(
            loss * scale, learned, materialize_grads=True, retain_graph=scale != scales[-1]
        )
        found = torch.cat([part.flatten() for part in parts]) / scale
        if found.isfinite().all():
            break
    return found


class _Known(torch.autograd.Function):
    """A scalar whose gradient by some parameters, one flat vector, is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.shapes = [p.shape for p in parameters]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        parts = (outer * gradient).split([shape.numel() for shape in ctx.shapes])
        return (None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)))


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
    rows: int | None = None,
) -> Terms:
    """The three terms on one minibatch of ON and one of OFF prompts."""
    on_term, mass_on = on_loss(model, bank, k, on, on_prompts, teacher=teacher, kind=on_kind, rows=rows)
    off_term, mass_off = off_loss(
        model, bank, k, off, tail_fraction=tail_fraction, batch_rows=batch_rows, rows=rows
    )
    return Terms(on_term, off_term, bank.structure(k).loss, mass_on, mass_off)
