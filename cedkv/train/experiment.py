"""Everything a run fixes before its first step: model, data, what the teacher says, anchors, the bank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cedkv import __version__
from cedkv.config import Config, config_hash
from cedkv.core.errors import UserError
from cedkv.core.team import ALONE, Team
from cedkv.data.build import build_corpus
from cedkv.data.encode import EncodedCorpus, encode_corpus
from cedkv.data.records import Corpus, hashes
from cedkv.evaluate import answer_log_probs, choose_shortcut, probe_of
from cedkv.injection import check_routed
from cedkv.injection.storage import Room
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.memory.bank import MemoryBank, MixSpec
from cedkv.memory.gate import SlotGate, identity_start
from cedkv.models.layers import attention_modules, resolve_scope
from cedkv.models.load import LoadedModel, load_model
from cedkv.models.types import CausalLM
from cedkv.train.clock import Clock
from cedkv.train.documents import read_documents
from cedkv.train.follow import together
from cedkv.train.gate_start import gate_start
from cedkv.train.teacher import Teacher, ask_teacher, questions_of

SHORTCUT_TOLERANCE = 1e-5
"""Nats. Passes that leave out what is known already add the same numbers in another order: rounding only."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The fixed part of a run.

    `teacher_train`, `teacher_eval`, `base_eval`: log-probabilities [A, V] at the answer tokens of every ON prompt.
    `teacher_cached`: whether the teacher read each document once, `teacher_max_error` how far that is from reading it
    anew for every prompt, in nats.
    `teacher_cache_max_kl`, `teacher_reads`: see `Documents`.
    `shortcut`: what passes over fixed prompts leave out, `shortcut_max_error` how far they are from plain ones, in nats.
    `on`, `off` and `stress` are the training and stress prompts up to the first injected layer; those of `on` go on to
    the last answer token but one.
    `team`: the processes that share all this; each holds the same experiment.
    """

    config: Config
    loaded: LoadedModel
    corpus: Corpus
    encoded: EncodedCorpus
    bank: MemoryBank
    teacher_train: list[Tensor]
    teacher_eval: list[Tensor]
    base_eval: list[Tensor]
    teacher_cached: bool
    teacher_max_error: float
    teacher_cache_max_kl: float
    shortcut: Shortcut
    shortcut_max_error: float
    on: Trunk
    off: Trunk
    stress: Trunk
    teacher_reads: dict[str, float]
    team: Team = ALONE

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
        value_residual=phase != 2 and phase3.mix.value_residual == "learned",
    )


def prepare(config: Config, phase: int, clock: Clock | None = None, team: Team = ALONE) -> Experiment:
    """Load, encode, ask the teacher, capture, choose anchors.

    Args:
        clock: where the time that the parts take is noted.
        team: the processes that share the work; a meeting of all of them.

    Raises:
        UserError: anything in the configuration, the data or the model that cannot work, before training starts.
    """
    clock = clock or Clock()
    with clock.part("load"):
        corpus, loaded, spec, encoded = together(team, lambda: _loaded(config, phase))
        together(team, lambda: _check_same(team, config, corpus, loaded))
    rows = config.phase3.eval.batch_rows
    with clock.part("teacher"):
        teacher = _teacher(loaded.model, encoded, rows, team)
        base_eval = _base(loaded.model, encoded, rows, team)
    trained = len(encoded.on_train)
    teacher_train, teacher_eval = teacher.answers[:trained], teacher.answers[trained:]
    with clock.part("capture"):
        documents = read_documents(
            config, loaded, encoded, teacher_eval, spec.injection, rows=_rows_behind(rows), team=team
        )
        bank = MemoryBank(documents.atoms, documents.plans, spec).to(loaded.device)
        if config.phase3.mix.slot_gate == "affine":
            bank.gate = _gate(config, loaded.model, encoded, bank, team)
    with clock.part("trunk"):
        probe = probe_of([row.prompt for row in encoded.stress])
        states = bank.states(k=config.phase3.candidate.pool_size).detach()
        shortcut, error = choose_shortcut(loaded.model, states, probe, SHORTCUT_TOLERANCE)
        shortcut = Shortcut(team.tell(bytes([shortcut]))[0])
        room = Room(config.phase3.eval.trunk_memory_gib, team)
        trunk = partial(
            Trunk,
            loaded.model,
            first_layer=states.layers[0],
            shortcut=shortcut,
            batch_rows=rows,
            room=room,
            team=team,
        )
        on, off, stress = (
            trunk(
                [row.prompt + row.answer[:-1] for row in encoded.on_train],
                keep=[len(row.answer) for row in encoded.on_train],
            ),
            trunk([row.prompt for row in encoded.off_train]),
            trunk([row.prompt for row in encoded.stress]),
        )
    return Experiment(
        config=config,
        loaded=loaded,
        corpus=corpus,
        encoded=encoded,
        bank=bank,
        teacher_train=teacher_train,
        teacher_eval=teacher_eval,
        base_eval=base_eval,
        teacher_cached=teacher.cached,
        teacher_max_error=teacher.error,
        teacher_cache_max_kl=documents.teacher_cache_max_kl,
        shortcut=shortcut,
        shortcut_max_error=error,
        on=on,
        off=off,
        stress=stress,
        teacher_reads=documents.teacher_reads,
        team=team,
    )


def _loaded(config: Config, phase: int) -> tuple[Corpus, LoadedModel, MixSpec, EncodedCorpus]:
    """Data, model, what is mixed and injected, and the data as tokens."""
    corpus, model = build_corpus(config), config.model
    loaded = load_model(
        config.model_source,
        dtype=model.dtype,
        device=model.device,
        trust_remote_code=model.trust_remote_code,
    )
    spec = mix_spec(config, loaded.model, phase)
    check_routed(loaded.model, spec.injection)
    return corpus, loaded, spec, encode_corpus(config, corpus, loaded.tokenizer, loaded.context_length)


def _check_same(team: Team, config: Config, corpus: Corpus, loaded: LoadedModel) -> None:
    """Refuse processes that would not compute the same run."""
    contents = {name: content["sha256"] for name, content in hashes(corpus).items()}
    facts = {
        **contents,
        "configuration": config_hash(config),
        "model": loaded.fingerprint,
        "code": __version__,
    }
    first = json.loads(team.tell(json.dumps(facts).encode()))
    differs = [name for name in facts if facts[name] != first[name]]
    if differs:
        raise UserError(
            f"{', '.join(differs)}: another one than the first process has; give all of them the same configuration, data, model "
            "and version of cedkv"
        )


def _teacher(model: CausalLM, encoded: EncodedCorpus, rows: int, team: Team) -> Teacher:
    """What the teacher says to the ON training prompts and to the ON evaluation prompts, in this order."""
    questions = questions_of(encoded, (*encoded.on_train, *encoded.on_eval))
    return ask_teacher(
        model, [c.ids for c in encoded.contexts], questions, rows=_rows_behind(rows), team=team
    )


@torch.no_grad()
def _base(model: CausalLM, encoded: EncodedCorpus, rows: int, team: Team) -> list[Tensor]:
    """What the bare model says to the ON evaluation prompts without their documents."""
    prompts, answers = [row.prompt for row in encoded.on_eval], [row.answer for row in encoded.on_eval]
    return answer_log_probs(model, prompts, answers, batch_rows=rows, team=team)


def _gate(config: Config, model: CausalLM, encoded: EncodedCorpus, bank: MemoryBank, team: Team) -> SlotGate:
    slots, warm = bank.states(config.phase3.candidate.pool_size).detach(), config.phase3.warm_start.gate
    sinks = bank.spec.sink_slots
    start = (
        gate_start(config, model, encoded, slots, sinks=sinks, team=team)
        if warm.start == "measured"
        else identity_start(slots, model.config.get_text_config().num_attention_heads, sinks)
    )
    return SlotGate(start, config.phase3.mix.gate_share)


def _rows_behind(rows: int) -> int:
    """Rows of a pass that has a document in front of every prompt, where `rows` bare prompts would fit."""
    return max(1, rows // 8)
