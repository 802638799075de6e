"""Proxies of the ON and OFF losses from cached attention, what they are worth, and the losses they can stand in for.

`proxy_off` of a prompt under a state is the relative squared change of the attention output at its last position, the mean
over injected layers; `proxy_on` the relative squared distance to the teacher's attention output. Queries of layers behind
the first injected one are those of the base: that is what makes it a proxy. No gate and no constraint reads one.

Shapes: U OFF prompts, N states, P ON prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv import ledger
from cedkv.core.proxy import pearson_of_logs, relative_change, spearman
from cedkv.core.team import ALONE, Team
from cedkv.data.encode import EncodedCorpus
from cedkv.injection.ends import Ends, ends_of
from cedkv.injection.merge import OwnAttention
from cedkv.injection.tree import Ids
from cedkv.memory.state import States
from cedkv.models.types import CausalLM

SAMPLE = 256
"""ON training prompts, at most, over which `proxy_on` is held against the measured KL."""
BLOCK = 1 << 24
"""Numbers of attention output that are held at once."""


@torch.no_grad()
def proxy_off(ends: Ends, states: States, team: Team = ALONE) -> Tensor:
    """[U, N]: every prompt under every state, one matrix product per layer and kv head, blocks dealt to `team`."""
    own = next(iter(ends.values()))
    prompts, size = own.out.shape[0], own.out[0].numel() * states.count
    found = own.out.new_zeros(prompts, states.count)
    blocks = torch.arange(prompts, device=own.out.device).split(max(1, BLOCK // size))
    for number in team.deal([block.numel() for block in blocks]):
        places = blocks[number]
        changes = []
        for layer in states.layers:
            part = _taken(ends[layer], places)
            merged = part.merged_with_all(states.at(layer))  # [U, N, 1, H, E]
            changes.append(relative_change(merged, part.out[:, None])[..., 0])
        found[places] = torch.stack(changes).mean(0)
    team.merge(found)
    return found


def proxy_off_of(ends: Ends, states: States, rows: Tensor) -> Tensor:
    """[U], differentiable in `states`: every prompt under the state that `rows` [U] names for it."""
    changes = [relative_change(ends[i].merged(states.at(i, rows))[0], ends[i].out) for i in states.layers]
    return torch.stack(changes).mean(0)[:, 0]


def proxy_on(ends: Ends, teacher: Ends, states: States, rows: Tensor) -> Tensor:
    """[P], differentiable in `states`: how far each end is from the teacher's attention output, under the state `rows`."""
    changes = [relative_change(ends[i].merged(states.at(i, rows))[0], teacher[i].out) for i in states.layers]
    return torch.stack(changes).mean(0)[:, 0]


def _taken(own: OwnAttention, places: Tensor) -> OwnAttention:
    return OwnAttention(own.query[places], own.out[places], own.lse[places], own.scoring)


def taken(ends: Ends, places: Sequence[int] | Tensor) -> Ends:
    """The ends at `places`, in that order."""
    device = next(iter(ends.values())).out.device
    chosen = torch.as_tensor(places, dtype=torch.long, device=device)
    return {layer: _taken(own, chosen) for layer, own in ends.items()}


@dataclass(frozen=True, slots=True)
class OnEnds:
    """ON training prompts `places`: the ends of their answers [P], bare and behind their documents.

    `prompt` [P]: which of `places` an end belongs to; `document` [P]: the document it asks about.
    """

    places: tuple[int, ...]
    prompt: Tensor
    document: Tensor
    bare: Ends
    teacher: Ends

    def values(self, states: States) -> Tensor:
        """[places] proxy of every prompt, the mean over its answer tokens."""
        found = proxy_on(self.bare, self.teacher, states, self.document)
        total = found.new_zeros(len(self.places)).index_add(0, self.prompt, found)
        return total / torch.bincount(self.prompt, minlength=len(self.places))


def on_ends(
    model: CausalLM,
    encoded: EncodedCorpus,
    places: Sequence[int],
    layers: tuple[int, ...],
    *,
    rows: int,
    team: Team = ALONE,
) -> OnEnds:
    """Attention of the ON training prompts at `places`, by plain passes with and without their documents."""
    chosen = [encoded.on_train[i] for i in places]
    keep = [len(row.answer) for row in chosen]
    bare = [row.prompt + row.answer[:-1] for row in chosen]
    behind: list[Ids] = [
        encoded.contexts[row.document].ids + row.prompt[encoded.skipped :] + row.answer[:-1] for row in chosen
    ]
    counts = torch.tensor(keep)
    device = model.device
    return OnEnds(
        tuple(places),
        torch.arange(len(chosen)).repeat_interleave(counts).to(device),
        torch.tensor([row.document for row in chosen]).repeat_interleave(counts).to(device),
        ends_of(model, bare, layers, rows=rows, keep=keep, team=team),
        ends_of(model, behind, layers, rows=max(1, rows // 8), keep=keep, team=team),
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Nats for one unit of a proxy: the factor that fits best between the logarithms of what was measured and the proxy."""

    on: float = 1.0
    off: float = 1.0


def fitted_scale(proxy: Tensor, measured: Tensor) -> float:
    """Exp of the mean of log(measured / proxy), over pairs in which both are positive and finite; 1 where there is none.

    >>> fitted_scale(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([2.0, 4.0, 9.0]))
    2.0
    """
    usable = (proxy > 0) & (measured > 0) & torch.isfinite(proxy) & torch.isfinite(measured)
    if not usable.any():
        return 1.0
    return round((measured[usable].double().log() - proxy[usable].double().log()).mean().exp().item(), 12)


def off_truth(proxy: Tensor, kl: Tensor) -> dict[str, float]:
    """How `proxy_off` [U, N] goes with the KL [U, N] measured under the same states, over pairs and over prompts."""
    worst, truth = proxy.amax(1), kl.amax(1)
    return {
        ledger.PROXY_OFF_PEARSON: pearson_of_logs(proxy, kl),
        ledger.PROXY_OFF_SPEARMAN: spearman(proxy, kl),
        ledger.PROXY_STRESS_SPEARMAN: spearman(worst, truth),
        ledger.PROXY_P99: worst.sort().values[math.ceil(0.99 * len(worst)) - 1].item(),
    }


def on_truth(proxy: Tensor, kl: Tensor, logp: Tensor) -> dict[str, float]:
    """How `proxy_on` [P] goes with KL(teacher || student) [P] and with the answers' log-probability [P]."""
    return {
        ledger.PROXY_ON_PEARSON: pearson_of_logs(proxy, kl),
        ledger.PROXY_ON_SPEARMAN: spearman(proxy, kl),
        ledger.PROXY_ON_ANSWER_SPEARMAN: spearman(proxy, logp),
    }


def scatter(step: int, proxy: Tensor, kl: Tensor, size: int = 1000) -> list[dict[str, float | int]]:
    """Rows of the scatter table: pairs spread evenly over the ranks of the measured KL, and its hundred largest."""
    flat, order = kl.flatten(), kl.flatten().argsort()
    count = len(order)
    spread = {int(order[i * (count - 1) // max(1, size - 1)]) for i in range(min(size, count))}
    chosen = sorted(spread | set(order[-100:].tolist()))
    states = kl.shape[1]
    values = proxy.flatten()
    return [
        {
            "step": step,
            "prompt": i // states,
            "state": i % states,
            "proxy": values[i].item(),
            "kl": flat[i].item(),
        }
        for i in chosen
    ]


def recall(proxy: Tensor, kl: Tensor, taken_first: int, top: int) -> float:
    """Share of the `top` prompts by measured stress that are among the `taken_first` prompts by proxy; both are [U]."""
    found = set(proxy.argsort(descending=True)[:taken_first].tolist())
    wanted = kl.argsort(descending=True)[:top].tolist()
    return sum(i in found for i in wanted) / max(1, len(wanted))
