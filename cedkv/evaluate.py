"""What a memory does to prompts, measured by forward passes of the real model.

Shapes: U OFF prompts, N states, A answer tokens, V vocabulary. All divergences are in nats, computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence
from cedkv.data.batching import Padded, by_length, pad_left
from cedkv.injection import AttentionCall, fan_out, inject
from cedkv.injection.fan_out import product_rows
from cedkv.memory.state import States
from cedkv.models.types import CausalLM

Ids = tuple[int, ...]


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
        batch_rows: rows (prompt × state) of one forward pass.
        plain: run every row through the whole model instead of sharing what lies below the first injected layer.
    """
    count = states.count
    kl = torch.empty(len(prompts), count)
    base_top = torch.empty(len(prompts), dtype=torch.long)
    student_top = torch.empty(len(prompts), count, dtype=torch.long)
    width = min(count, batch_rows)
    for group in by_length([len(p) for p in prompts], max(1, batch_rows // count)):
        batch = pad_left([prompts[u] for u in group], model.device)
        base = next_log_probs(model, batch)[:, 0]
        base_top[group] = base.argmax(-1).cpu()
        for start in range(0, count, width):
            part = torch.arange(start, min(start + width, count), device=model.device)
            student = product_log_probs(model, states, batch, part, plain=plain)
            columns = part.cpu()
            kl[torch.tensor(group)[:, None], columns] = kl_divergence(student, base[:, None]).float().cpu()
            student_top[torch.tensor(group)[:, None], columns] = student.argmax(-1).cpu()
    return StressResult(kl, base_top, student_top)


def product_log_probs(
    model: CausalLM, states: States, batch: Padded, part: Tensor, *, plain: bool = False
) -> Tensor:
    """Log-probabilities [P, R, V] of the next token of P prompts under each of the R states `part`."""
    prompts, times = batch.ids.shape[0], part.numel()
    rows = part[product_rows(prompts, times, part.device)]
    with ExitStack() as stack:
        if plain:
            mask = None if batch.mask is None else batch.mask.repeat_interleave(times, 0)
            batch = Padded(batch.ids.repeat_interleave(times, 0), mask, batch.positions)
            if mask is not None:
                batch = Padded(batch.ids, mask, batch.positions.repeat_interleave(times, 0))
        else:
            stack.enter_context(fan_out(model, states.layers[0], times))
        stack.enter_context(inject(model, states, rows))
        return next_log_probs(model, batch).view(prompts, times, -1)


def fan_out_error(model: CausalLM, states: States, prompts: Sequence[Ids]) -> float:
    """Largest difference in KL, in nats, between the shared and the plain forward pass on a few prompts.

    Raises:
        UserError: a family whose forward pass insists on the number of rows it was given.
    """
    plain = stress(model, states, prompts, batch_rows=64, plain=True)
    try:
        shared = stress(model, states, prompts, batch_rows=64)
    except RuntimeError as error:
        raise UserError(
            f"model family {model.config.model_type!r} cannot share what lies below the first injected layer between "
            f"states ({error}): use another family"
        ) from error
    return (shared.kl - plain.kl).abs().max().item()


@dataclass(frozen=True, slots=True)
class SlotMass:
    """Collects the attention mass the last `queries` positions give to slots, averaged over layers, heads and rows."""

    queries: int
    found: list[float]

    def __call__(self, call: AttentionCall) -> None:
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
