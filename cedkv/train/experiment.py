"""Everything a run fixes before its first step: model, data, what the teacher says, anchors, the bank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cedkv import ledger
from cedkv.config import Config
from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence
from cedkv.data.build import build_corpus
from cedkv.data.encode import EncodedContext, EncodedCorpus, EncodedOn, encode_corpus
from cedkv.data.records import Corpus
from cedkv.evaluate import answer_log_probs, choose_shortcut
from cedkv.injection import attention_to, capture, check_routed, inject, positions_behind
from cedkv.injection.storage import Room
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.memory.atoms import Atoms
from cedkv.memory.bank import MemoryBank, MixSpec
from cedkv.memory.warm_start import SlotPlan, plan_slots
from cedkv.models.layers import attention_modules, resolve_scope
from cedkv.models.load import LoadedModel, load_model
from cedkv.models.types import CausalLM

SHORTCUT_TOLERANCE = 1e-5
"""Nats. Passes that leave out what is known already add the same numbers in another order: rounding only."""
WARM_START_OFF_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probabilities [A, V] at the answer tokens of every ON prompt."""

    base: list[Tensor]
    teacher: list[Tensor]


@dataclass(frozen=True, slots=True)
class Experiment:
    """The fixed part of a run.

    `teacher_cache_max_kl`: how far, in nats, the whole document injected at all layers is from the teacher.
    `shortcut`: what passes over fixed prompts leave out, `shortcut_max_error` how far they are from plain ones, in nats.
    `teacher_reads`: the share of the ON prompts' attention on the document, at the injected layers, by atom type.
    `on`, `off` and `stress` are the training and stress prompts up to the first injected layer; those of `on` go on to
    the last answer token but one.
    """

    config: Config
    loaded: LoadedModel
    corpus: Corpus
    encoded: EncodedCorpus
    bank: MemoryBank
    train: Answers
    evaluation: Answers
    teacher_cache_max_kl: float
    shortcut: Shortcut
    shortcut_max_error: float
    on: Trunk
    off: Trunk
    stress: Trunk
    teacher_reads: dict[str, float]

    @property
    def model(self) -> CausalLM:
        """The frozen model."""
        return self.loaded.model


def mix_spec(config: Config, model: CausalLM, phase: int) -> MixSpec:
    """Layers and rules of the mixture. Phase 2 assembles anchors, whatever the mode.

    Raises:
        UserError: a scope that names no layer, or mixture layers that are not injected.
    """
    phase3 = config.phase3
    layers = list(attention_modules(model).values())
    mixture = resolve_scope(phase3.layer_scope.mixture, layers)
    injection = resolve_scope(phase3.layer_scope.injection, layers)
    outside = sorted(set(mixture) - set(injection))
    if outside:
        raise UserError(
            f"phase3.layer_scope.mixture names layers {outside} that phase3.layer_scope.injection {list(injection)} does not "
            "inject: mixture layers are injected layers; widen the injection or narrow the mixture"
        )
    return MixSpec(
        mode="anchor" if phase == 2 else phase3.mix.mode,
        share=phase3.mix.share,
        mixture=mixture,
        injection=injection,
        sink_slots=phase3.memory.sink_slots,
        mass_cap=phase3.candidate.delimiter.mass_cap,
        mass_penalty=phase3.candidate.delimiter.mass_penalty,
    )


def prepare(config: Config, phase: int) -> Experiment:
    """Load, encode, capture, ask the teacher, choose anchors.

    Raises:
        UserError: anything in the configuration, the data or the model that cannot work, before training starts.
    """
    corpus = build_corpus(config)
    model_config = config.model
    loaded = load_model(
        config.model_source,
        dtype=model_config.dtype,
        device=model_config.device,
        trust_remote_code=model_config.trust_remote_code,
    )
    spec = mix_spec(config, loaded.model, phase)
    check_routed(loaded.model, spec.injection)
    encoded = encode_corpus(config, corpus, loaded.tokenizer, loaded.context_length)
    rows = config.phase3.eval.batch_rows
    train, evaluation = (
        ask(loaded.model, encoded, part, rows) for part in (encoded.on_train, encoded.on_eval)
    )
    atoms, plans, reads, worst = [], [], [], 0.0
    for n, context in enumerate(encoded.contexts):
        whole = capture(loaded.model, context.id, context.ids, context.types, encoded.skipped)
        worst = max(worst, _cache_error(loaded.model, whole, encoded, evaluation, n))
        looks = _looks(loaded, whole, encoded, spec.injection, n)
        reads.append(_mass_by_type(looks.on, context.types))
        plans.append(_plan(config, context, looks))
        atoms.append(whole.at_layers(spec.injection))
    bank = MemoryBank(atoms, plans, spec).to(loaded.device)
    probe = [row.prompt for row in encoded.stress[:: max(1, len(encoded.stress) // 8)][:8]]
    states = bank.states(k=config.phase3.candidate.pool_size).detach()
    shortcut, error = choose_shortcut(loaded.model, states, probe, SHORTCUT_TOLERANCE)
    room = Room(config.phase3.eval.trunk_memory_gib)
    trunk = partial(
        Trunk, loaded.model, first_layer=states.layers[0], shortcut=shortcut, batch_rows=rows, room=room
    )
    return Experiment(
        config=config,
        loaded=loaded,
        corpus=corpus,
        encoded=encoded,
        bank=bank,
        train=train,
        evaluation=evaluation,
        teacher_cache_max_kl=worst,
        shortcut=shortcut,
        shortcut_max_error=error,
        on=trunk(
            [row.prompt + row.answer[:-1] for row in encoded.on_train],
            keep=[len(row.answer) for row in encoded.on_train],
        ),
        off=trunk([row.prompt for row in encoded.off_train]),
        stress=trunk([row.prompt for row in encoded.stress]),
        teacher_reads={kind: sum(r[kind] for r in reads) / len(reads) for kind in reads[0]},
    )


@torch.no_grad()
def ask(model: CausalLM, encoded: EncodedCorpus, prompts: Sequence[EncodedOn], rows: int) -> Answers:
    """What base and teacher say to `prompts`, by plain forward passes."""
    answers = [row.answer for row in prompts]
    base = answer_log_probs(model, [row.prompt for row in prompts], answers, batch_rows=rows)
    behind = [encoded.contexts[row.document].ids + row.prompt[encoded.skipped :] for row in prompts]
    teacher = answer_log_probs(model, behind, answers, batch_rows=max(1, rows // 8))
    return Answers(base, teacher)


@torch.no_grad()
def _cache_error(
    model: CausalLM, whole: Atoms, encoded: EncodedCorpus, answers: Answers, document: int
) -> float:
    """Largest KL between the teacher and the whole document injected at all layers, over the document's ON prompts."""
    worst = 0.0
    for i, row in enumerate(encoded.on_eval):
        if row.document != document:
            continue
        ids = torch.tensor([row.prompt[encoded.skipped :] + row.answer[:-1]], device=model.device)
        positions = positions_behind(model, whole, ids.shape[1], encoded.skipped)
        with inject(model, whole.as_states()):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[
                0, -len(row.answer) :
            ]
        cached = logits.float().log_softmax(-1)
        worst = max(worst, kl_divergence(answers.teacher[i], cached).max().item())
    return worst


@dataclass(frozen=True, slots=True)
class _Looks:
    """Where prompts look in a document read behind it: ON training prompts [L, P, D], OFF prompts [L, U, D]."""

    on: Tensor
    off: Tensor


def _looks(
    loaded: LoadedModel, whole: Atoms, encoded: EncodedCorpus, layers: tuple[int, ...], document: int
) -> _Looks:
    """Attention of the document's ON training prompts, and of a sample of OFF prompts, at the injected layers.

    OFF prompts that do not fit behind the document are left out; with none left, nothing counts against an anchor.
    """
    room = loaded.context_length - len(whole.types) + encoded.skipped
    on = [row for row in encoded.on_train if row.document == document]
    off = encoded.off_train[:WARM_START_OFF_PROMPTS]
    shown = [row.prompt[encoded.skipped :] + row.answer[:-1] for row in on]
    off_shown = [row.prompt[encoded.skipped :] for row in off if len(row.prompt) <= room]
    look = partial(_attention, loaded.model, whole, layers=layers, skipped=encoded.skipped)
    seen_on = look(shown, [len(row.answer) for row in on])
    seen_off = look(off_shown, [1] * len(off_shown)) if off_shown else torch.zeros_like(seen_on[:, :1])
    return _Looks(seen_on, seen_off)


def _mass_by_type(on: Tensor, types: tuple[str | None, ...]) -> dict[str, float]:
    """Share of the attention on the document that each atom type gets; `special` is BOS and its like."""
    mass = on.mean((0, 1))
    kinds = [kind or "special" for kind in types]
    total = mass.sum().item()
    return {
        kind: sum(m for m, k in zip(mass.tolist(), kinds, strict=True) if k == kind) / total
        for kind in (*ledger.ATOM_TYPES, "special")
    }


def _plan(config: Config, context: EncodedContext, looks: _Looks) -> SlotPlan:
    memory, candidate = config.phase3.memory, config.phase3.candidate
    return plan_slots(
        context.id,
        context.types,
        looks.on,
        looks.off,
        slots=memory.slots,
        pool_size=candidate.pool_size,
        atom_types=candidate.atom_types,
        anti_steer_strength=config.phase3.warm_start.anti_steer_strength,
    )


def _attention(
    model: CausalLM,
    whole: Atoms,
    prompts: Sequence[tuple[int, ...]],
    counted: Sequence[int],
    *,
    layers: tuple[int, ...],
    skipped: int,
) -> Tensor:
    """[L, P, D]: `attention_to` over prompts of any length, equal ones together."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (prompt, count) in enumerate(zip(prompts, counted, strict=True)):
        groups[len(prompt), count].append(i)
    seen = torch.zeros(len(layers), len(prompts), len(whole.types), device=model.device)
    for (_, count), members in groups.items():
        ids = torch.tensor([prompts[i] for i in members], device=model.device)
        seen[:, members] = attention_to(model, whole, ids, count, layers, distance=skipped)
    return seen
