"""What a run reads from its documents before it trains: atoms, where prompts look in them, and which become anchors.

Documents of one length go together, a few at a time: whole documents are held at all layers only while they are read.

Shapes: L injected layers, P ON training prompts and U OFF prompts of a document, D tokens of it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv import ledger
from cedkv.config import Config
from cedkv.core.losses import kl_divergence
from cedkv.data.batching import by_length, by_similar_length, pad_right
from cedkv.data.encode import EncodedContext, EncodedCorpus
from cedkv.injection import attention_to, capture, inject, positions_behind
from cedkv.injection.attention import armed
from cedkv.injection.tree import Ids
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.memory.warm_start import SlotPlan, plan_slots
from cedkv.models.load import LoadedModel
from cedkv.models.types import CausalLM
from cedkv.train.teacher import DOCUMENTS_AT_ONCE, answers_behind, questions_of

WARM_START_OFF_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Documents:
    """Atoms at the injected layers and slot plans, in the order of the documents.

    `teacher_cache_max_kl`: how far, in nats, the whole document injected at all layers is from the teacher.
    `teacher_reads`: the share of the ON prompts' attention on the document, at the injected layers, by atom type.
    """

    atoms: list[Atoms]
    plans: list[SlotPlan]
    teacher_cache_max_kl: float
    teacher_reads: dict[str, float]


def read_documents(
    config: Config,
    loaded: LoadedModel,
    encoded: EncodedCorpus,
    teacher: Sequence[Tensor],
    layers: tuple[int, ...],
    *,
    rows: int,
) -> Documents:
    """Capture every document and plan its slots.

    Args:
        teacher: [A, V] each, what it says to the ON evaluation prompts.
        layers: the injected ones.
        rows: prompts of one forward pass.
    """
    atoms: dict[int, Atoms] = {}
    plans: dict[int, SlotPlan] = {}
    reads: dict[int, dict[str, float]] = {}
    worst = 0.0
    with armed(loaded.model):
        for numbers in by_length([len(context.ids) for context in encoded.contexts], DOCUMENTS_AT_ONCE):
            contexts = [encoded.contexts[n] for n in numbers]
            read = [capture(loaded.model, c.id, c.ids, c.types, encoded.skipped) for c in contexts]
            group = _Group(numbers, States.stack([document.as_states() for document in read]))
            worst = max(worst, _cache_error(loaded.model, encoded, group, teacher, rows))
            looks = _looks(loaded, encoded, group, layers, rows)
            for n, context, document, look in zip(numbers, contexts, read, looks, strict=True):
                atoms[n] = document.at_layers(layers)
                plans[n] = _plan(config, context, look)
                reads[n] = _mass_by_type(look.on, context.types)
    order = range(len(encoded.contexts))
    return Documents(
        [atoms[n] for n in order],
        [plans[n] for n in order],
        worst,
        {kind: sum(reads[n][kind] for n in order) / len(order) for kind in reads[0]},
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Documents of one length: their numbers, and all of them injected whole, as many states."""

    numbers: list[int]
    whole: States


@torch.no_grad()
def _cache_error(
    model: CausalLM, encoded: EncodedCorpus, group: _Group, teacher: Sequence[Tensor], rows: int
) -> float:
    """Largest KL between the teacher and the whole document injected at all layers, over the group's ON prompts."""
    asked = [i for i, row in enumerate(encoded.on_eval) if row.document in group.numbers]
    questions = questions_of(encoded, [encoded.on_eval[i] for i in asked])
    start = int(positions_behind(model, group.whole, 1, encoded.skipped))
    worst = 0.0
    for part in by_similar_length([len(q.shown) for q in questions], rows):
        chosen = [questions[p] for p in part]
        places = [group.numbers.index(question.document) for question in chosen]
        with inject(model, group.whole, torch.tensor(places, device=model.device)):
            found = answers_behind(model, chosen, start)
        for p, said in zip(part, found, strict=True):
            worst = max(worst, kl_divergence(teacher[asked[p]], said).max().item())
    return worst


@dataclass(frozen=True, slots=True)
class _Looks:
    """Where prompts look in a document read behind it: ON training prompts [L, P, D], OFF prompts [L, U, D]."""

    on: Tensor
    off: Tensor


def _looks(
    loaded: LoadedModel, encoded: EncodedCorpus, group: _Group, layers: tuple[int, ...], rows: int
) -> list[_Looks]:
    """Attention of each document's ON training prompts, and of a sample of OFF prompts, at the injected layers.

    OFF prompts that do not fit behind the documents are left out; with none left, nothing counts against an anchor.
    """
    skipped, places = encoded.skipped, range(len(group.numbers))
    room = loaded.context_length - group.whole.slots + skipped
    prompts = [
        _Prompt(group.numbers.index(q.document), q.shown, len(q.answer))
        for q in questions_of(encoded, encoded.on_train)
        if q.document in group.numbers
    ]
    on = len(prompts)
    off = [row.prompt for row in encoded.off_train[:WARM_START_OFF_PROMPTS] if len(row.prompt) <= room]
    prompts += [_Prompt(place, prompt[skipped:], 1) for place in places for prompt in off]
    seen = torch.zeros(len(layers), len(prompts), group.whole.slots, device=loaded.device)
    for part in by_similar_length([len(prompt.ids) for prompt in prompts], rows):
        seen[:, part] = _attention(loaded.model, group.whole, [prompts[i] for i in part], layers, skipped)
    found = []
    for place in places:
        seen_on = seen[:, [i for i in range(on) if prompts[i].place == place]]
        seen_off = seen[:, on + place * len(off) : on + (place + 1) * len(off)]
        found.append(_Looks(seen_on, seen_off if off else torch.zeros_like(seen_on[:, :1])))
    return found


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt behind the document at `place` of a group; its last `counted` positions are looked at."""

    place: int
    ids: Ids
    counted: int


def _attention(
    model: CausalLM, whole: States, prompts: Sequence[_Prompt], layers: tuple[int, ...], skipped: int
) -> Tensor:
    """[L, P, D]: what `prompts` see of their documents, by one pass."""
    ids = pad_right([prompt.ids for prompt in prompts], model.device)
    places = torch.tensor([prompt.place for prompt in prompts], device=model.device)
    share = _share(prompts, ids.shape[1]).to(model.device)
    return attention_to(model, whole, ids, share, layers, rows=places, distance=skipped)


def _share(prompts: Sequence[_Prompt], width: int) -> Tensor:
    """[P, Q]: each prompt's last `counted` positions in equal parts, of rows padded on the right to `width`."""
    first = min(len(prompt.ids) - prompt.counted for prompt in prompts)
    share = torch.zeros(len(prompts), width - first)
    for row, prompt in enumerate(prompts):
        end = len(prompt.ids) - first
        share[row, end - prompt.counted : end] = 1 / prompt.counted
    return share


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
