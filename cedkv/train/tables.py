"""The per-prompt tables of a run, from what was measured: the evidence every gate judges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cedkv.data.batching import every_nth, pad_left
from cedkv.data.records import OffPrompt
from cedkv.evaluate import SlotMass, StressResult, answer_log_probs, mean_kl, next_log_probs, score_answers
from cedkv.injection import inject
from cedkv.memory.state import States
from cedkv.models.types import Tokenizer
from cedkv.tracking.record import OnRow, StressRow
from cedkv.train.experiment import Experiment


def stress_rows(experiment: Experiment, result: StressResult) -> tuple[StressRow, ...]:
    """One row per prompt of the fixed stress set, in its order."""
    sources = [row.source for row in experiment.encoded.stress]
    return stress_table(sources, result, experiment.bank.documents, experiment.loaded.tokenizer)


def stress_table(
    prompts: Sequence[OffPrompt], result: StressResult, names: Sequence[str], tokenizer: Tokenizer
) -> tuple[StressRow, ...]:
    """One row per OFF prompt; ``names`` are those of the states."""
    delta, worst = result.delta.tolist(), result.worst_state.tolist()
    typical, assigned = result.typical.tolist(), result.typical_state.tolist()
    student = result.student_top.gather(1, result.worst_state[:, None])[:, 0].tolist()
    return tuple(
        StressRow(
            id=row.id,
            prompt=row.prompt,
            family=row.family,
            stress_delta=delta[u],
            state=names[worst[u]],
            typical=typical[u],
            typical_state=names[assigned[u]],
            base_top=_shown(tokenizer, base_top),
            student_top=_shown(tokenizer, student[u]),
        )
        for u, (row, base_top) in enumerate(zip(prompts, result.base_top.tolist(), strict=True))
    )


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """The token's entry in the vocabulary; many models can say more tokens than their tokenizer knows."""
    known = token < len(tokenizer)
    return str(tokenizer.convert_ids_to_tokens(token)) if known else f"<token {token}>"


@torch.no_grad()
def on_rows(experiment: Experiment, states: States, mass: SlotMass) -> tuple[OnRow, ...]:
    """One row per ON evaluation prompt, its document's state injected; `mass` gathers the attention on the slots."""
    prompts = experiment.encoded.on_eval
    student = answer_log_probs(
        experiment.model,
        [row.prompt for row in prompts],
        [row.answer for row in prompts],
        batch_rows=experiment.config.phase3.eval.batch_rows,
        states=states,
        rows=torch.tensor([row.document for row in prompts], device=experiment.loaded.device),
        observer=mass,
    )
    return answered(experiment, student)


@torch.no_grad()
def answered(experiment: Experiment, student: Sequence[Tensor]) -> tuple[OnRow, ...]:
    """One row per ON evaluation prompt, from the student's log-probabilities [A, V] at its answer tokens."""
    prompts = experiment.encoded.on_eval
    answers = [row.answer for row in prompts]
    base, teacher = experiment.base_eval, experiment.teacher_eval
    by_base, by_student, by_teacher = (score_answers(x, answers) for x in (base, student, teacher))
    kl_student, kl_base = mean_kl(teacher, student), mean_kl(teacher, base)
    kl_moved = mean_kl(student, base)
    return tuple(
        OnRow(
            id=row.source.id,
            document=row.source.document,
            prompt=row.source.prompt,
            answer=row.source.answer,
            tokens=len(row.answer),
            base_correct=by_base.correct[i],
            student_correct=by_student.correct[i],
            teacher_correct=by_teacher.correct[i],
            base_logp=by_base.logp[i],
            student_logp=by_student.logp[i],
            teacher_logp=by_teacher.logp[i],
            kl_teacher_student=kl_student[i],
            kl_teacher_base=kl_base[i],
            kl_student_base=kl_moved[i],
        )
        for i, row in enumerate(prompts)
    )


@torch.no_grad()
def off_slot_mass(experiment: Experiment, states: States) -> float:
    """Attention mass on the slots that a sample of OFF training prompts shows, each under its state by round-robin."""
    prompts = [row.prompt for row in every_nth(experiment.encoded.off_train)]
    mass = SlotMass(1, [])
    rows = torch.arange(len(prompts), device=experiment.loaded.device) % states.count
    size = experiment.config.phase3.eval.batch_rows
    for start in range(0, len(prompts), size):
        with inject(experiment.model, states, rows[start : start + size], mass):
            next_log_probs(
                experiment.model, pad_left(prompts[start : start + size], experiment.loaded.device)
            )
    return mass.mean
