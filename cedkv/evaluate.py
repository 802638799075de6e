"""What a memory does to prompts, measured by forward passes of the real model.

Shapes: U OFF prompts, N states, A answer tokens, V vocabulary. All divergences are in nats, computed in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.core.losses import kl_divergence, kl_from_logits
from cedkv.core.team import ALONE, Team
from cedkv.data.batching import Padded, pad_left
from cedkv.injection import inject
from cedkv.injection.attention import armed
from cedkv.injection.calls import Attended
from cedkv.injection.resume import resume_product
from cedkv.injection.storage import gathered
from cedkv.injection.tree import Ids, Packed
from cedkv.injection.trunk import Part, Shortcut, Trunk
from cedkv.memory.state import States
from cedkv.models.layers import in_one_piece
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
    with in_one_piece(model):
        logits = model(**batch.inputs(), use_cache=False, logits_to_keep=keep).logits[:, -keep:]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def stress(
    model: CausalLM,
    states: States,
    prompts: Sequence[Ids],
    *,
    batch_rows: int,
    plain: bool = False,
    team: Team = ALONE,
) -> StressResult:
    """Every prompt under every state.

    Args:
        prompts: ids; a `Trunk`, or part of one, saves the way up to the first injected layer.
        batch_rows: rows (prompt × state) of one forward pass.
        plain: run every row through the whole model.
        team: the processes that share the work, where `prompts` are no trunk's; else they are those of the trunk.
    """
    count = states.count
    part = _part_of(model, states, prompts, Shortcut.PLAIN if plain else Shortcut.TRUNK, team)
    trunk = part.trunk
    kl = torch.zeros(len(prompts), count, device=model.device)
    base_top = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
    student_top = torch.zeros_like(kl, dtype=torch.long)
    with armed(model):
        for packed in trunk.product(part.places, batch_rows, count):
            base = trunk.base(packed)
            base_top[packed.member] = base.argmax(-1)[packed.row, packed.end]
            for columns in columns_of(states, packed, batch_rows):
                student = resume_product(model, trunk, packed, states, columns)
                found, top = kl_from_logits(student, base)
                places = packed.member[:, None], columns
                kl[places] = found[packed.row, :, packed.end].float()
                student_top[places] = top[packed.row, :, packed.end]
    trunk.team.merge(kl, base_top, student_top)
    return StressResult(kl.cpu(), base_top.cpu(), student_top.cpu())


def columns_of(states: States, packed: Packed, batch_rows: int) -> Iterator[Tensor]:
    """The states in parts of like size that fit one forward pass."""
    device = next(iter(states.keys.values())).device
    rows = packed.member.numel()
    parts = min(states.count, math.ceil(states.count * rows / batch_rows))
    return iter(torch.arange(states.count, device=device).tensor_split(parts))


def _part_of(model: CausalLM, states: States, prompts: Sequence[Ids], shortcut: Shortcut, team: Team) -> Part:
    """`prompts` as part of a trunk; a new one, with `shortcut`, where they are a plain sequence."""
    if isinstance(prompts, Trunk | Part) and shortcut is Shortcut.PLAIN:
        team = prompts.team if isinstance(prompts, Trunk) else prompts.trunk.team
        prompts = list(prompts)
    if not isinstance(prompts, Trunk | Part):
        prompts = Trunk(model, prompts, states.layers[0], shortcut=shortcut, team=team)
    part = prompts if isinstance(prompts, Part) else prompts.take(range(len(prompts)))
    if part.trunk.first_layer != states.layers[0]:
        raise ValueError(
            f"the trunk ends at layer {part.trunk.first_layer}, but the states enter at layer {states.layers[0]}: "
            "make a new trunk"
        )
    return part


def probe_of(prompts: Sequence[Ids], count: int = 8) -> list[Ids]:
    """`count` of `prompts` that show what shortcuts do: pairs that begin alike, from all over, and the longest one."""
    order = sorted(set(prompts))
    pairs = max(1, count // 2 - 1)
    firsts = [round(n * max(0, len(order) - 2) / max(1, pairs - 1)) for n in range(pairs)]
    chosen = dict.fromkeys(order[i] for first in firsts for i in (first, first + 1) if i < len(order))
    chosen |= dict.fromkeys(sorted(order, key=len)[-max(1, count - 2 * pairs) :])
    return list(chosen)[:count]


ROUNDING = 2.0
"""How many times as far from a wider type as the plain pass another way to the same numbers may be."""


def choose_shortcut(
    model: CausalLM, states: States, prompts: Sequence[Ids], tolerance: float
) -> tuple[Shortcut, float]:
    """The shortest way that agrees with the plain pass on `prompts`, and by how much it differs at most.

    The difference is that of the KL to the base over all prompts and states, in nats, or relative to a KL over one nat.
    Where a family's code does not allow a way, or it differs by more than `tolerance`, the next longer one is tried;
    `Shortcut.PLAIN` differs by 0.

    Two right ways may differ by more than that: in half precision always, in float32 where the layers above enlarge
    what was rounded. Then a way is held to a copy of the model in the next wider type: there it must agree to
    `tolerance`, and in the model itself be as near to it as the plain pass is, `ROUNDING` times.
    """
    plain = stress(model, states, prompts, batch_rows=64, plain=True).kl
    wide: _Wide | None = None
    for shortcut in sorted(Shortcut, reverse=True)[:-1]:
        found = _by(shortcut, model, states, prompts)
        if found is None:
            continue
        difference = _difference(found, plain)
        if difference > tolerance:
            wide = wide or _Wide.of(model, states, prompts)
            exact = None if wide.kl is None else _by(shortcut, wide.model, states, prompts)
            if wide.kl is None or exact is None or _difference(exact, wide.kl) > tolerance:
                continue
            if _difference(found, wide.kl) > max(tolerance, ROUNDING * _difference(plain, wide.kl)):
                continue
        return shortcut, difference
    return Shortcut.PLAIN, 0.0


@dataclass(frozen=True, slots=True)
class _Wide:
    """A copy of a model in the next wider type, and the KL [U, N] that its plain passes give.

    None where they cannot be made: experts' products know no float64, and a copy may not fit the memory.
    """

    model: CausalLM
    kl: Tensor | None

    @classmethod
    def of(cls, model: CausalLM, states: States, prompts: Sequence[Ids]) -> _Wide:
        try:
            wide = widened(model)
            return cls(wide, stress(wide, states, prompts, batch_rows=64, plain=True).kl)
        except RuntimeError:
            return cls(model, None)


def widened(model: CausalLM) -> CausalLM:
    """A copy in float32 of a model in half precision, in float64 of one in float32."""
    copied = copy.deepcopy(model)
    return copied.float() if torch.finfo(model.dtype).bits < 32 else copied.double()


def _by(shortcut: Shortcut, model: CausalLM, states: States, prompts: Sequence[Ids]) -> Tensor | None:
    """The KL [U, N] by this shortcut; None where the family's layers are called or built in another way."""
    try:
        trunk = Trunk(model, prompts, states.layers[0], shortcut=shortcut)
        return stress(model, states, trunk, batch_rows=64).kl
    except (RuntimeError, TypeError, ValueError, IndexError):  # NoShortcutError among them
        return None


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The largest one, relative where `wanted` is over 1; infinite where one is not a number."""
    return torch.nan_to_num((found - wanted).abs() / wanted.clamp_min(1.0), nan=math.inf).max().item()


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
    team: Team = ALONE,
) -> list[Tensor]:
    """Teacher-forced log-probabilities [A, V] at each answer token of every prompt.

    Args:
        states, rows: what to inject, and the state of each prompt; nothing where None.
        team: the processes that share the passes. In one process alone the result is differentiable in `states`.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    groups = [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    found: dict[int, Tensor] = {}
    for number in team.deal([sum(len(prompts[i]) for i in group) for group in groups]):
        group = groups[number]
        # The last answer token predicts nothing that is scored.
        batch = pad_left([prompts[i] + answers[i][:-1] for i in group], model.device)
        keep = max(len(answers[i]) for i in group)
        with inject(model, states, None if rows is None else rows[group], observer):
            log_probs = next_log_probs(model, batch, keep)
        for row, i in enumerate(group):
            found[i] = log_probs[row, keep - len(answers[i]) :]
    return gathered(found, [len(answer) for answer in answers], team, log_prob_type(model), model.device)


def log_prob_type(model: CausalLM) -> torch.dtype:
    """The type of log-probabilities that are made from a model's logits."""
    return torch.promote_types(model.dtype, torch.float32)


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
