"""What a run reads from its documents before it trains: atoms, where prompts look in them, and which become anchors.

Documents of one length go together, a few at a time: whole documents are held at all layers only while they are read.

Shapes: L injected layers, G kv heads, P ON training prompts and U OFF prompts of a document, D tokens of it, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import safetensors.torch
import torch
from torch import Tensor

from cedkv import ledger
from cedkv.config import Config
from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence
from cedkv.core.team import ALONE, Team
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
from cedkv.train.follow import together
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
    team: Team = ALONE,
) -> Documents:
    """Capture every document and plan its slots.

    Args:
        teacher: [A, V] each, what it says to the ON evaluation prompts.
        layers: the injected ones.
        rows: prompts of one forward pass.
        team: the processes that share the documents.
    """
    lengths = [len(context.ids) for context in encoded.contexts]
    groups = list(by_length(lengths, DOCUMENTS_AT_ONCE))
    mine = [groups[number] for number in team.deal([sum(lengths[n] for n in group) for group in groups])]

    def read_mine() -> dict[int, _Read]:
        read: dict[int, _Read] = {}
        with armed(loaded.model):
            for group in mine:
                read |= _read(config, loaded, encoded, group, teacher=teacher, layers=layers, rows=rows)
        return read

    read = together(team, read_mine)
    documents = _shared(encoded, read, layers, team, loaded.device)
    looks = torch.stack([document.looks for document in documents]).mean(0)
    return Documents(
        [document.atoms for document in documents],
        [document.plan for document in documents],
        max(document.error for document in documents),
        dict(zip(_KINDS, looks.tolist(), strict=True)),
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """What is known of one document: its atoms, its plan, and the shares of its ON prompts' attention, as in `_KINDS`.

    `error`: the largest KL between the teacher and the document's group, injected whole at all layers.
    """

    atoms: Atoms
    plan: SlotPlan
    looks: Tensor
    error: float

    def tensors(self) -> dict[str, Tensor]:
        """All of it but names, for another process."""
        plan = {name: getattr(self.plan, name) for name in _PLAN}
        facts = {
            "positions": self.atoms.positions,
            "looks": self.looks,
            "error": torch.tensor([self.error]).double(),
        }
        keys, values = (
            {f"{name}.{layer}": x for layer, x in found.items()}
            for name, found in (("key", self.atoms.keys), ("value", self.atoms.values))
        )
        return {name: x.contiguous() for name, x in {**plan, **facts, **keys, **values}.items()}

    @classmethod
    def of(cls, context: EncodedContext, layers: tuple[int, ...], found: Mapping[str, Tensor]) -> _Read:
        """The document `context` as another process read it."""
        keys, values = ({layer: found[f"{name}.{layer}"] for layer in layers} for name in ("key", "value"))
        atoms = Atoms(context.id, context.types, found["positions"], keys, values)
        return cls(atoms, SlotPlan(*(found[name] for name in _PLAN)), found["looks"], found["error"].item())


_KINDS = (*ledger.ATOM_TYPES, "special")
_PLAN = tuple(field.name for field in fields(SlotPlan))


def _read(
    config: Config,
    loaded: LoadedModel,
    encoded: EncodedCorpus,
    numbers: list[int],
    *,
    teacher: Sequence[Tensor],
    layers: tuple[int, ...],
    rows: int,
) -> dict[int, _Read]:
    """The documents `numbers`, all of one length."""
    contexts = [encoded.contexts[n] for n in numbers]
    captured = [capture(loaded.model, c.id, c.ids, c.types, encoded.skipped) for c in contexts]
    group = _Group(numbers, States.stack([document.as_states() for document in captured]))
    _check_heads(config, group.whole, layers)
    error = _cache_error(loaded.model, encoded, group, teacher, rows)
    by_head = config.phase3.mix.k_anchor.share == "head"
    looks = _looks(loaded, encoded, group, layers, rows, by_head=by_head)
    return {
        n: _Read(
            atoms.at_layers(layers),
            _plan(config, context, look),
            _mass_by_type(look.on, context.types),
            error,
        )
        for n, context, atoms, look in zip(numbers, contexts, captured, looks, strict=True)
    }


def _shared(
    encoded: EncodedCorpus, read: dict[int, _Read], layers: tuple[int, ...], team: Team, device: torch.device
) -> list[_Read]:
    """Every document, of which each process of the team read some."""
    if team.size > 1:
        mine = {f"{n}:{name}": x for n, found in read.items() for name, x in found.tensors().items()}
        for told in team.gather(safetensors.torch.save(mine)):
            theirs: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for key, x in safetensors.torch.load(told).items():
                n, _, name = key.partition(":")
                theirs[int(n)][name] = x.to(device)
            read |= {n: _Read.of(encoded.contexts[n], layers, found) for n, found in theirs.items()}
    return [read[n] for n in range(len(encoded.contexts))]


@dataclass(frozen=True, slots=True)
class _Group:
    """Documents of one length: their numbers, and all of them injected whole, as many states."""

    numbers: list[int]
    whole: States


def _check_heads(config: Config, whole: States, layers: tuple[int, ...]) -> None:
    """Raise `UserError` where what is to be learned for each kv head has no such heads that all layers share."""
    heads = {layer: whole.keys[layer].shape[1] for layer in layers}
    if config.phase3.mix.share == "head" and len(set(heads.values())) > 1:
        counts = ", ".join(f"{count} at layer {layer}" for layer, count in heads.items())
        raise UserError(
            f"phase3.mix.share = head: the injected layers have different numbers of kv heads ({counts}); share by layer, or "
            "inject into layers that have as many"
        )


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
    """Where prompts look in a document read behind it: ON training prompts [L, G, P, D], OFF prompts [L, G, U, D]."""

    on: Tensor
    off: Tensor


def _looks(
    loaded: LoadedModel,
    encoded: EncodedCorpus,
    group: _Group,
    layers: tuple[int, ...],
    rows: int,
    *,
    by_head: bool,
) -> list[_Looks]:
    """Attention of each document's ON training prompts, and of a sample of OFF prompts, at the injected layers.

    G is the number of kv heads, or 1 where all heads are averaged.

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
    groups = group.whole.keys[layers[0]].shape[1] if by_head else 1
    seen = torch.zeros(len(layers), groups, len(prompts), group.whole.slots, device=loaded.device)
    for part in by_similar_length([len(prompt.ids) for prompt in prompts], rows):
        asked = [prompts[i] for i in part]
        seen[:, :, part] = _attention(loaded.model, group.whole, asked, layers, skipped, by_head=by_head)
    found = []
    for place in places:
        seen_on = seen[:, :, [i for i in range(on) if prompts[i].place == place]]
        seen_off = seen[:, :, on + place * len(off) : on + (place + 1) * len(off)]
        found.append(_Looks(seen_on, seen_off if off else torch.zeros_like(seen_on[:, :, :1])))
    return found


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt behind the document at `place` of a group; its last `counted` positions are looked at."""

    place: int
    ids: Ids
    counted: int


def _attention(
    model: CausalLM,
    whole: States,
    prompts: Sequence[_Prompt],
    layers: tuple[int, ...],
    skipped: int,
    *,
    by_head: bool,
) -> Tensor:
    """[L, G, P, D]: what `prompts` see of their documents, by one pass."""
    ids = pad_right([prompt.ids for prompt in prompts], model.device)
    places = torch.tensor([prompt.place for prompt in prompts], device=model.device)
    share = _share(prompts, ids.shape[1]).to(model.device)
    return attention_to(model, whole, ids, share, layers, rows=places, distance=skipped, by_head=by_head)


def _share(prompts: Sequence[_Prompt], width: int) -> Tensor:
    """[P, Q]: each prompt's last `counted` positions in equal parts, of rows padded on the right to `width`."""
    first = min(len(prompt.ids) - prompt.counted for prompt in prompts)
    share = torch.zeros(len(prompts), width - first)
    for row, prompt in enumerate(prompts):
        end = len(prompt.ids) - first
        share[row, end - prompt.counted : end] = 1 / prompt.counted
    return share


def _mass_by_type(on: Tensor, types: tuple[str | None, ...]) -> Tensor:
    """Share of the attention on the document that each of `_KINDS` gets; `special` is BOS and its like."""
    mass = on.mean((0, 1, 2)).double().cpu()
    of = torch.tensor([_KINDS.index(kind or "special") for kind in types])
    return torch.zeros(len(_KINDS), dtype=torch.float64).index_add(0, of, mass) / mass.sum()


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
        share=config.phase3.mix.k_anchor.share,
    )
