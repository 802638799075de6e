"""Training of the peers' adapters: the same prompts, teacher, loss and number of steps that Phase 3 has.

Shapes: N documents, P prompts of a minibatch, A answer tokens, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.bench.quality.adapters import Adapters
from cedkv.core.losses import kl_divergence
from cedkv.core.risk import cvar, tail_weights
from cedkv.data.batching import by_similar_length, every_nth, pad_right
from cedkv.evaluate import stress
from cedkv.injection.attention import armed
from cedkv.injection.tree import Ids
from cedkv.injection.trunk import Part, log_probs
from cedkv.train.experiment import Experiment

MINED = 8192
"""OFF training prompts, every n-th of them, among which each document's hard ones are looked for."""
HARD = 32
"""Hard OFF prompts of a document."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a peer is trained. `on`: ON prompts of every document in a step, and as many OFF prompts with `off_weight`."""

    steps: int
    on: int
    rate: float
    seed: int
    off_weight: float = 0.0
    tail_fraction: float = 0.2


def plan_of(experiment: Experiment, *, rate: float, off: bool, documents: int) -> Plan:
    """Phase 3's steps, and the prompts that it gives each of its `documents` on average."""
    phase3 = experiment.config.phase3
    return Plan(
        steps=phase3.train.steps,
        on=max(1, round(phase3.train.on_batch / documents)),
        rate=rate,
        seed=phase3.train.seed,
        off_weight=phase3.loss.lambda_off if off else 0.0,
        tail_fraction=phase3.loss.off.cvar_tail_fraction,
    )


class Material:
    """What the peers of one seed learn from: ON prompts by document with what the teacher says, and OFF prompts.

    Half of a document's OFF minibatch comes from all OFF training prompts, half from those that disturb the anchors'
    memory of this very document most: drawn blindly, hardly one in five hundred would concern it. There is one of each
    where a step has one ON prompt of a document only.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        count = len(experiment.encoded.contexts)
        self.on: list[list[int]] = [[] for _ in range(count)]
        for place, row in enumerate(experiment.encoded.on_train):
            self.on[row.document].append(place)
        self._hard: Tensor | None = None

    @property
    def hard(self) -> Tensor:
        """[N, HARD] places of OFF training prompts."""
        if self._hard is None:
            e = self.experiment
            places = every_nth(range(len(e.off)), MINED)
            states = e.bank.states(e.config.phase3.candidate.pool_size).detach()
            found = stress(e.model, states, e.off.take(places), batch_rows=e.config.phase3.eval.batch_rows)
            worst = found.kl.topk(min(HARD, len(places)), dim=0).indices.T
            self._hard = torch.tensor(places)[worst]
        return self._hard

    def draw(self, plan: Plan, generator: torch.Generator) -> tuple[list[int], list[int], list[int]]:
        """Places of ON prompts, of OFF prompts, and the documents of the latter; all documents in turn."""
        on, off, whose = [], [], []
        for n, mine in enumerate(self.on):
            on += _some(mine, plan.on, generator)
            if plan.off_weight:
                hard = _some(self.hard[n].tolist(), max(1, plan.on // 2), generator)
                blind = torch.randint(
                    len(self.experiment.off), (max(1, plan.on - len(hard)),), generator=generator
                )
                off += [*hard, *blind.tolist()]
                whose += [n] * (len(hard) + len(blind))
        return on, off, whose


def train(adapters: Adapters, material: Material, plan: Plan) -> None:
    """Adam on the sum over documents of their mean ON loss, and λ times the CVaR of their OFF loss."""
    optimiser = torch.optim.Adam(adapters.parameters(), lr=plan.rate)
    generator = torch.Generator().manual_seed(plan.seed)
    with armed(material.experiment.model):
        for _ in range(plan.steps):
            optimiser.zero_grad()
            on, off, whose = material.draw(plan, generator)
            add_on(adapters, material.experiment, on)
            if plan.off_weight:
                add_off(adapters, material.experiment, off, whose, plan)
            optimiser.step()


def add_on(adapters: Adapters, experiment: Experiment, places: Sequence[int]) -> float:
    """Add the gradient of Σ_documents mean KL(teacher || student) over its ON prompts; returns the sum."""
    rows = [experiment.encoded.on_train[i] for i in places]
    teacher = [experiment.teacher_train[i] for i in places]
    whose = torch.tensor([row.document for row in rows])
    weights = 1.0 / torch.bincount(whose)[whose]
    total = 0.0
    for part in _passes([len(row.prompt) + len(row.answer) for row in rows], experiment):
        chosen = [rows[i] for i in part]
        said = answers(
            adapters, [(r.prompt, r.answer) for r in chosen], whose[part].to(experiment.model.device)
        )
        kls = torch.stack([kl_divergence(teacher[i], said[p]).mean() for p, i in enumerate(part)])
        loss = (kls * weights[part].to(kls.device)).sum()
        loss.backward()
        total += loss.item()
    return total


def add_off(
    adapters: Adapters, experiment: Experiment, places: Sequence[int], whose: Sequence[int], plan: Plan
) -> float:
    """Add λ times the gradient of Σ_documents CVaR of KL(student || base) over its OFF prompts; returns the sum.

    The tail is found without gradients: the others have none.
    """
    prompts = experiment.off.take(places)
    base = bases(prompts)
    documents = torch.tensor(whose)
    with torch.no_grad():
        kl = drift(adapters, experiment, list(prompts), documents, base)
    weights = torch.zeros_like(kl)
    for n in documents.unique():
        mine = documents == n
        weights[mine] = tail_weights(kl[mine], plan.tail_fraction)
    tail = weights.nonzero()[:, 0].tolist()
    total = 0.0
    for part in _passes([len(prompts[i]) for i in tail], experiment):
        members = [tail[p] for p in part]
        found = drift(
            adapters,
            experiment,
            [prompts[i] for i in members],
            documents[members],
            [base[i] for i in members],
        )
        loss = plan.off_weight * (found * weights[members].to(found.device)).sum()
        loss.backward()
        total += loss.item()
    return total


def bases(prompts: Part) -> list[Tensor]:
    """What the base says behind each of the prompts [V], from the trunk."""
    trunk = prompts.trunk
    found: dict[int, Tensor] = {}
    for _, packed in trunk.single(prompts.places):
        said = trunk.base(packed)[packed.row, packed.end]
        found |= dict(zip(packed.member.tolist(), said, strict=True))
    return [found[i] for i in range(len(prompts))]


def answers(adapters: Adapters, prompts: Sequence[tuple[Ids, Ids]], rows: Tensor) -> list[Tensor]:
    """Log-probabilities [A, V] at the answer tokens, by one pass padded on the right."""
    ids = pad_right([prompt + answer[:-1] for prompt, answer in prompts], rows.device)
    first = min(len(prompt) for prompt, _ in prompts) - 1
    logits = adapters.logits(ids, rows, ids.shape[1] - first)
    found = []
    for row, (prompt, answer) in zip(logits, prompts, strict=True):
        begin = len(prompt) - 1 - first
        found.append(log_probs(row[begin : begin + len(answer)]))
    return found


def drift(
    adapters: Adapters,
    experiment: Experiment,
    prompts: Sequence[Ids],
    documents: Tensor,
    base: Sequence[Tensor],
) -> Tensor:
    """KL(student || base) [P] at each prompt's last token under its document's adapter."""
    found: dict[int, Tensor] = {}
    for part in _passes([len(prompt) for prompt in prompts], experiment):
        chosen = [(prompts[i], (0,)) for i in part]
        said = answers(adapters, chosen, documents[part].to(experiment.model.device))
        kl = kl_divergence(torch.cat(said), torch.stack([base[i] for i in part]))
        found |= dict(zip(part, kl, strict=True))
    return torch.stack([found[i] for i in range(len(prompts))])


@torch.no_grad()
def score(adapters: Adapters, experiment: Experiment, plan: Plan, kl: Tensor | None) -> float:
    """What the variant minimises, on prompts it has not seen: ON evaluation prompts, and KLs [U, N] of stress prompts."""
    rows = experiment.encoded.on_eval
    losses = []
    for part in _passes([len(row.prompt) + len(row.answer) for row in rows], experiment):
        whose = torch.tensor([rows[i].document for i in part], device=experiment.model.device)
        said = answers(adapters, [(rows[i].prompt, rows[i].answer) for i in part], whose)
        losses += [
            kl_divergence(experiment.teacher_eval[i], s).mean().item()
            for i, s in zip(part, said, strict=True)
        ]
    on = sum(losses) / len(losses)
    if kl is None:
        return on
    tails = [cvar(column, plan.tail_fraction).item() for column in kl.T]
    return on + plan.off_weight * sum(tails) / len(tails)


def _passes(lengths: Sequence[int], experiment: Experiment) -> list[list[int]]:
    return list(by_similar_length(lengths, experiment.config.phase3.eval.batch_rows))


def _some(places: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    return [places[i] for i in torch.randperm(len(places), generator=generator)[:count].tolist()]
