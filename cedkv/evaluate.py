"""What a memory does to prompts, measured by forward passes of the real model.

Shapes: U OFF prompts, N states, A answer tokens, V vocabulary. All divergences are in nats, computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.core.losses import kl_divergence
from cedkv.data.batching import Padded, by_length, pad_left
from cedkv.injection import inject
from cedkv.injection.attention import Attended, armed
from cedkv.injection.resume import resume_product
from cedkv.injection.trunk import Ids, Part, Shortcut, Trunk, log_probs
from cedkv.memory.state import States
from cedkv.models.types import CausalLM


@dataclass(frozen=True, slots=True)
class StressResult:
    """KL(student || base) of every OFF prompt under every state, and the tokens the two would say next."""

    kl: Tensor  # [U, N]
    base_top: Tensor  # [U]
    student_top: Tensor  # [U, N]

    @property
    def delta(self) -> Tensor:
        """[U] stress: the largest over states."""
        return self.kl.amax(1)

    @property
    def worst_state(self) -> Tensor:
        """[U] the state that reaches it."""
        return self.kl.argmax(1)

    @property
    def typical_state(self) -> Tensor:
        """[U] the one state that round-robin assigns to a prompt."""
        return torch.arange(self.kl.shape[0]) % self.kl.shape[1]

    @property
    def typical(self) -> Tensor:
        """[U] the KL under the typical state."""
        return self.kl.gather(1, self.typical_state[:, None])[:, 0]


def next_log_probs(model: CausalLM, batch: Padded, keep: int = 1) -> Tensor:
    """Log-probabilities [B, keep, V] behind the last `keep` positions, at least float32."""
    logits = model(**batch.inputs(), use_cache=False, logits_to_keep=keep).logits[:, -keep:]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def stress(
    model: CausalLM, states: States, prompts: Sequence[Ids], *, batch_rows: int, plain: bool = False
) -> StressResult:
    """Every prompt under every state.

    Args:
        prompts: ids; a `Trunk`, or part of one, saves the way up to the first injected layer.
        batch_rows: rows (prompt × state) of one forward pass.
        plain: run every row through the whole model.
    """
    count = states.count
    kl = torch.empty(len(prompts), count)
    base_top = torch.empty(len(prompts), dtype=torch.long)
    student_top = torch.empty(len(prompts), count, dtype=torch.long)
    passes = _plain_passes if plain else _resumed_passes
    with armed(model):
        for group, columns, base, student in passes(model, states, prompts, batch_rows):
            base_top[group] = base.argmax(-1).cpu()
            places = torch.tensor(group)[:, None], columns.cpu()
            kl[places] = kl_divergence(student, base[:, None]).float().cpu()
            student_top[places] = student.argmax(-1).cpu()
    return StressResult(kl, base_top, student_top)


_Pass = tuple[list[int], Tensor, Tensor, Tensor]
"""Indices of P prompts, columns of R states, log-probabilities of base [P, V] and student [P, R, V]."""


def _plain_passes(
    model: CausalLM, states: States, prompts: Sequence[Ids], batch_rows: int
) -> Iterator[_Pass]:
    """By whole forward passes."""
    for group in by_length([len(p) for p in prompts], max(1, batch_rows // states.count)):
        ids = torch.tensor([prompts[u] for u in group], device=model.device)
        base = log_probs(model, ids, 1)[:, 0]
        for columns in _columns(states, batch_rows):
            times = columns.numel()
            with inject(model, states, columns.repeat(len(group))):
                student = log_probs(model, ids.repeat_interleave(times, 0), 1)
            yield group, columns, base, student.view(len(group), times, -1)


def _resumed_passes(
    model: CausalLM, states: States, prompts: Sequence[Ids], batch_rows: int
) -> Iterator[_Pass]:
    """From the first injected layer on."""
    part = _part_of(model, states, prompts)
    trunk = part.trunk
    for group, bucket, rows in trunk.groups(part.places, max(1, batch_rows // states.count)):
        base = bucket.base[rows][:, 0]
        for columns in _columns(states, batch_rows):
            student = resume_product(model, bucket, rows, states, columns, shortcut=trunk.shortcut)
            yield group, columns, base, student[:, :, 0]


def _columns(states: States, batch_rows: int) -> Iterator[Tensor]:
    """The states in parts that fit one forward pass."""
    device = next(iter(states.keys.values())).device
    return iter(torch.arange(states.count, device=device).split(batch_rows))


def _part_of(model: CausalLM, states: States, prompts: Sequence[Ids]) -> Part:
    """`prompts` as part of a trunk; a new one where they are a plain sequence."""
    if not isinstance(prompts, Trunk | Part):
        prompts = Trunk(model, prompts, states.layers[0], shortcut=Shortcut.TRUNK)
    part = prompts if isinstance(prompts, Part) else prompts.take(range(len(prompts)))
    if part.trunk.first_layer != states.layers[0]:
        raise ValueError(
            f"the trunk ends at layer {part.trunk.first_layer}, but the states enter at layer {states.layers[0]}: "
            "make a new trunk"
        )
    return part


def choose_shortcut(
    model: CausalLM, states: States, prompts: Sequence[Ids], tolerance: float
) -> tuple[Shortcut, float]:
    """The shortest way that agrees with the plain pass on `prompts`, and by how much it differs at most.

    The difference is that of the KL to the base over all prompts and states, in nats, or relative to a KL over one nat.
    Where a family's code does not allow a way, or it differs by more than `tolerance`, the next longer one is tried;
    `Shortcut.PLAIN` differs by 0.
    """
    plain = stress(model, states, prompts, batch_rows=64, plain=True).kl
    for shortcut in sorted(Shortcut, reverse=True):
        if shortcut is Shortcut.PLAIN:
            break
        try:
            trunk = Trunk(model, prompts, states.layers[0], shortcut=shortcut)
            found = stress(model, states, trunk, batch_rows=64).kl
            error = ((found - plain).abs() / plain.clamp_min(1.0)).max().item()
        except (RuntimeError, TypeError, ValueError, IndexError):  # NoShortcutError among them
            continue  # this family's layers are called or built in another way
        if error <= tolerance:
            return shortcut, error
    return Shortcut.PLAIN, 0.0


@dataclass(frozen=True, slots=True)
class SlotMass:
    """Collects the attention mass the last `queries` positions give to slots, averaged over layers, heads and rows."""

    queries: int
    found: list[float]

    def __call__(self, call: Attended) -> None:
        """Note one layer's mean mass on its slots."""
        with torch.no_grad():
            weights = call.last_weights(self.queries)
            self.found.append(weights[..., : call.slots].sum(-1).mean().item())

    @property
    def mean(self) -> float:
        """The mean over all calls; 0 where there was none."""
        return sum(self.found) / len(self.found) if self.found else 0.0


def answer_log_probs(
    model: CausalLM,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    *,
    batch_rows: int,
    states: States | None = None,
    rows: Tensor | None = None,
    observer: SlotMass | None = None,
) -> list[Tensor]:
    """Teacher-forced log-probabilities [A, V] at each answer token of every prompt, differentiable in `states`.

    Args:
        states, rows: what to inject, and the state of each prompt; nothing where None.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    found: list[Tensor | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_rows):
        group = order[start : start + batch_rows]
        # The last answer token predicts nothing that is scored.
        batch = pad_left([prompts[i] + answers[i][:-1] for i in group], model.device)
        keep = max(len(answers[i]) for i in group)
        with inject(model, states, None if rows is None else rows[group], observer):
            log_probs = next_log_probs(model, batch, keep)
        for row, i in enumerate(group):
            found[i] = log_probs[row, keep - len(answers[i]) :]
    return [f for f in found if f is not None]


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Per ON prompt: whether every answer token is the arg max, and the answer's log-probability (sum, nats)."""

    correct: list[bool]
    logp: list[float]


def score_answers(log_probs: Sequence[Tensor], answers: Sequence[Ids]) -> AnswerScores:
    """Exact match and log-probability of every answer."""
    correct, logp = [], []
    for table, answer in zip(log_probs, answers, strict=True):
        target = torch.tensor(answer, device=table.device)
        correct.append(bool((table.argmax(-1) == target).all()))
        logp.append(table.gather(1, target[:, None]).sum().item())
    return AnswerScores(correct, logp)


def mean_kl(p: Sequence[Tensor], q: Sequence[Tensor]) -> list[float]:
    """KL(p || q) of every prompt, averaged over its answer tokens."""
    return [kl_divergence(a, b).mean().item() for a, b in zip(p, q, strict=True)]
