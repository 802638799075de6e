"""Ways to compute a training step's loss: cedkv's, plain HF's and peft's, on one batch that is the same for all.

The loss is the mean KL to the teacher over ON prompts, and the CVaR of the KL to the base over OFF prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cedkv.bench import peers
from cedkv.bench.options import Options
from cedkv.bench.rows import PROBE_TOLERANCE
from cedkv.bench.subject import Subject, prompts_of_one_length
from cedkv.core.losses import kl_divergence
from cedkv.core.risk import cvar
from cedkv.data.encode import EncodedOn
from cedkv.data.records import OnPrompt
from cedkv.evaluate import choose_shortcut, probe_of
from cedkv.injection import inject
from cedkv.injection.tree import Ids
from cedkv.injection.trunk import Trunk
from cedkv.memory.bank import MemoryBank, MixSpec
from cedkv.memory.state import States
from cedkv.memory.warm_start import plan_slots
from cedkv.models.types import CausalLM
from cedkv.train.step import off_loss, on_loss

OURS, HF = "cedkv", "plain HF"
POOL, K = 16, 8
LAMBDA_OFF, TAIL_FRACTION, LEARNING_RATE = 2.0, 0.2, 0.01


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step reads. ON prompts end in their answer; its last token predicts nothing and is not read.

    `on`, `off`: ids [B, T]; `teacher`: log-probabilities [B, A, V]; `base`: [B, V].
    """

    prompts: tuple[EncodedOn, ...]
    on: Tensor
    teacher: Tensor
    off_prompts: tuple[Ids, ...]
    off: Tensor
    base: Tensor

    @property
    def answer(self) -> int:
        """A."""
        return self.teacher.shape[1]

    def loss(self, on_student: Tensor, off_student: Tensor) -> Tensor:
        """The scalar, from log-probabilities [B, A, V] and [B, V]."""
        on = kl_divergence(self.teacher, on_student).mean(-1).mean()
        return on + LAMBDA_OFF * cvar(kl_divergence(off_student, self.base), TAIL_FRACTION)


@dataclass(frozen=True, slots=True)
class Learner:
    """A way to compute the loss, and what it trains."""

    name: str
    computed: str
    loss: Callable[[], Tensor]
    trained: nn.Module
    optimiser: torch.optim.Optimizer

    def step(self) -> None:
        """One step of Adam."""
        self.optimiser.zero_grad()
        self.loss().backward()
        self.optimiser.step()

    def gradient(self) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient as one vector."""
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()
        parts = [p.grad.flatten() for p in self.trained.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(parts)


def make_batch(subject: Subject, options: Options) -> Batch:
    """Prompts of one length; the last tokens of the ON prompts are their answer, which the teacher knows a document for."""
    scale, model = options.scale, subject.model
    length, answer = scale.step_length, scale.answer
    prompts = prompts_of_one_length(subject, 2 * scale.step_batch, length)
    on, off = prompts[: scale.step_batch], prompts[scale.step_batch :]
    encoded = tuple(
        EncodedOn(OnPrompt(str(n), "d0", "", "", "train"), 0, ids[:-answer], ids[-answer:])
        for n, ids in enumerate(on)
    )
    document = subject.document_ids[0]
    device = model.device
    with torch.no_grad():
        behind = torch.tensor([document + ids[:-1] for ids in on], device=device)
        off_ids = torch.tensor(off, device=device)
        return Batch(
            encoded,
            torch.tensor([ids[:-1] for ids in on], device=device),
            peers.log_probs(model, behind, answer),
            off,
            off_ids,
            peers.log_probs(model, off_ids)[:, 0],
        )


def make_bank(subject: Subject) -> MemoryBank:
    """One document's memory over the top layers, its slots planned from attention drawn at random."""
    atoms = subject.documents[0].at_layers(subject.top)
    generator = torch.Generator().manual_seed(0)
    on, off = (torch.rand(len(subject.top), 1, n, len(atoms.types), generator=generator) for n in (8, 4))
    plan = plan_slots(
        atoms.document,
        atoms.types,
        on.to(subject.model.device),
        off.to(subject.model.device),
        slots=subject.slots,
        pool_size=POOL,
        atom_types=("content", "delimiter"),
        anti_steer_strength=0.2,
    )
    spec = MixSpec(
        mode="v_only",
        share="shared",
        mixture=subject.top,
        injection=subject.top,
        sink_slots=0,
        mass_cap=0.15,
        mass_penalty=0.05,
    )
    return MemoryBank([atoms], [plan], spec).to(subject.model.device)


def ours(model: CausalLM, bank: MemoryBank, batch: Batch, options: Options) -> Learner:
    """The losses as training computes them."""
    states = bank.states(K).detach()
    shortcut, _ = choose_shortcut(model, states, probe_of(batch.off_prompts), PROBE_TOLERANCE[options.dtype])
    whole = [row.prompt + row.answer[:-1] for row in batch.prompts]
    keep = [batch.answer] * len(whole)
    on = Trunk(model, whole, states.layers[0], shortcut=shortcut, keep=keep).take(range(len(whole)))
    off = Trunk(model, batch.off_prompts, states.layers[0], shortcut=shortcut).take(
        range(len(batch.off_prompts))
    )
    teacher, rows = list(batch.teacher), options.scale.batch_rows

    def loss() -> Tensor:
        on_term, _ = on_loss(model, bank, K, batch.prompts, on, teacher=teacher, kind="kl")
        off_term, _ = off_loss(model, bank, K, off, tail_fraction=TAIL_FRACTION, batch_rows=rows)
        return on_term + LAMBDA_OFF * off_term

    return Learner(OURS, "on_loss and off_loss of cedkv.train.step, from the trunk", loss, bank, _adam(bank))


def plain(model: CausalLM, bank: MemoryBank, batch: Batch) -> Learner:
    """The same bank, injected into whole passes."""

    def loss() -> Tensor:
        with inject(model, bank.states(K)):
            on_student = peers.log_probs(model, batch.on, batch.answer)
            return batch.loss(on_student, peers.log_probs(model, batch.off)[:, 0])

    return Learner(HF, "the same bank injected into whole passes", loss, bank, _adam(bank))


def by_peft(subject: Subject, kind: peers.Kind, every: States, batch: Batch) -> Learner:
    """An adapter that starts from the one state `every`, in all layers."""
    peer = peers.adapter(subject.model, kind, subject.slots)
    peers.load(peer, every, 0)

    def loss() -> Tensor:
        on_student = peers.log_probs(peer, batch.on, batch.answer)
        return batch.loss(on_student, peers.log_probs(peer, batch.off)[:, 0])

    trained = peers.parameters(peer)
    return Learner(peers.CALLED[kind], "keys and values of all layers", loss, trained, _adam(trained))


def shifted_gradient(model: CausalLM, every: States, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and gradient that peft has to find, by injection: in peft's order of the slots' numbers."""
    one = peers.behind_slots(every)
    leaves = [slots[i].clone().requires_grad_() for i in one.layers for slots in (one.keys, one.values)]
    pairs = list(zip(one.layers, leaves[::2], leaves[1::2], strict=True))
    states = States({i: k for i, k, _ in pairs}, {i: v for i, _, v in pairs}, one.positions)
    with inject(model, states):
        on_student = peers.log_probs(
            model, batch.on, batch.answer, position_ids=peers.shifted(batch.on, one.slots)
        )
        off_student = peers.log_probs(model, batch.off, position_ids=peers.shifted(batch.off, one.slots))
        loss = batch.loss(on_student, off_student[:, 0])
    gradients = torch.autograd.grad(loss, leaves)
    return loss.detach(), torch.stack([g[0] for g in gradients]).permute(2, 0, 1, 3).flatten()


def _adam(trained: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(trained.parameters(), lr=LEARNING_RATE)
