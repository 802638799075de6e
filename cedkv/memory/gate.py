"""The slot gate: gain and bias on the attention scores of a slot, started from what the model's own scores allow.

`score' = gain · score + bias`. A slot's key answers its own question with a score a little over what questions nearby
get, but the softmax it competes in (the prompt's own tokens) varies more than that from prompt to prompt. A gain widens
the gap, a bias puts the threshold into it. Gains multiply keys, so they are one for each kv head; each query head has a
bias of its own.

Shapes: N documents, L injected layers, G kv heads, H query heads, S slots, P ON prompts of a document, U OFF prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cedkv.memory.state import States
from cedkv.memory.warm_start import AnchorShare

GateShare = Literal["shared", "layer", "head"]
GAINS_TRIED = 12


@dataclass(frozen=True, slots=True)
class GateAims:
    """What a start is chosen for, in nats of log-odds of one slot against the prompt's own tokens.

    `on`: what a slot gets from its own questions, at least; `off`: what an OFF prompt gives it, at most, `ignored` of them
    left out in each head; `max_gain`: how far the gain may go. Where both cannot be had, `off` holds.
    """

    on: float
    off: float
    max_gain: float
    ignored: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What prompts give the slots of one document at one layer.

    `score` [P, H, S] of the slots, and the log-sum-exp `lse` [P, H] of the scores of the prompts' own tokens.
    """

    score: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class GateStart:
    """`gain` [..., G, S], `bias` [..., H, S], and the `pivot` [..., H, S] between ON and OFF scores, around which gains turn."""

    gain: Tensor
    bias: Tensor
    pivot: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of it."""
        return self.gain, self.bias, self.pivot

    @staticmethod
    def stack(parts: list[GateStart]) -> GateStart:
        """Along a new first axis."""
        return GateStart(
            *(torch.stack([getattr(p, name) for p in parts]) for name in ("gain", "bias", "pivot"))
        )


def own_slots(layers: list[Seen], share: AnchorShare, kv_heads: int) -> list[Tensor]:
    """[P, H] by layer: the slot each ON prompt reads most, by the mean log-odds over the layers and heads that share anchors."""
    odds = torch.stack([seen.score - seen.lse[..., None] for seen in layers])  # [L, P, H, S]
    heads = odds.shape[2]
    if share == "head":
        odds = odds.unflatten(2, (kv_heads, -1)).mean(3)
    else:
        odds = odds.mean((0, 2) if share == "shared" else 2, keepdim=True).expand(
            len(layers), -1, kv_heads, -1
        )
    return list(odds.argmax(-1).repeat_interleave(heads // kv_heads, dim=2))


def measured_start(on: Seen, own: Tensor, off: Seen, kv_heads: int, aims: GateAims) -> GateStart:
    """The smallest gain that leaves `aims.on − aims.off` between a slot's own questions and OFF prompts, and its bias.

    The log-odds of a prompt are `gain · score + bias − lse`. A tenth of a slot's own questions may miss the aim. One gain
    serves all query heads of a kv head: the smallest that does in each of them, else the largest. A slot without a
    question of its own keeps gain 1.

    Args:
        own: [P, H] the slot each ON prompt reads.
    """
    heads, slots = off.score.shape[1:]
    gains = torch.logspace(0, 1, GAINS_TRIED, base=max(aims.max_gain, 1.0)).to(off.score)
    asked = functional.one_hot(own, slots).bool()  # [P, H, S]
    widest = torch.stack([_highest(off, gain, aims.ignored) for gain in gains])  # [K, H, S]
    lowest = torch.stack([_lowest(on, asked, gain) for gain in gains])
    enough = (lowest - widest).unflatten(1, (kv_heads, -1)).amin(
        2
    ) >= aims.on - aims.off  # all heads of a group
    first = torch.where(enough.any(0), enough.int().argmax(0), len(gains) - 1)  # 0 where `lowest` is inf
    per_head = first.repeat_interleave(heads // kv_heads, dim=0)
    bias = aims.off - widest.gather(0, per_head[None])[0]
    top = off.score.amax(0)
    count = asked.sum(0)
    answered = torch.where(count > 0, (on.score * asked).sum(0) / count.clamp_min(1), top)
    return GateStart(gains[first], bias, (answered + top) / 2)


def _highest(off: Seen, gain: Tensor, ignored: int) -> Tensor:
    """[H, S] log-odds without bias of the OFF prompt that comes nearest, `ignored` nearer ones left out."""
    return (gain * off.score - off.lse[..., None]).topk(ignored + 1, dim=0).values[-1]


def _lowest(on: Seen, asked: Tensor, gain: Tensor) -> Tensor:
    """[H, S] log-odds without bias of a slot's own questions `asked` [P, H, S], the lowest tenth left out; inf where it has none."""
    odds = (gain * on.score - on.lse[..., None]).masked_fill(~asked, torch.inf).sort(0).values
    return odds.gather(0, (asked.sum(0) // 10)[None])[0]


def identity_start(slots: States, heads: int, sinks: int = 0) -> GateStart:
    """A gate that changes nothing of `slots`, for `heads` query heads; `sinks` of them, in front, have none."""
    key = torch.stack([slots.keys[layer][:, :, sinks:] for layer in slots.layers], dim=1)  # [N, L, G, S, D]
    n, layers, _, count, _ = key.shape
    # What is learned takes steps that half precision would round away.
    dtype = torch.promote_types(key.dtype, torch.float32)
    zeros = key.new_zeros(n, layers, heads, count, dtype=dtype)
    return GateStart(torch.ones_like(key[..., 0], dtype=dtype), zeros, zeros)


class SlotGate(nn.Module):
    """Gains and biases of all documents, learned as changes of their start: `gain = start · exp(log_gain)`, and a shift.

    The score at the pivot does not move with the gain, so that the two are learned independently of each other. `share`
    says whether what is learned is one for all layers and heads, one per layer, or one per layer and head.
    """

    gain: Tensor  # [N, L, G, S] where it starts
    bias: Tensor  # [N, L, H, S]
    pivot: Tensor  # [N, L, H, S]

    def __init__(self, start: GateStart, share: GateShare) -> None:
        super().__init__()
        for name in ("gain", "bias", "pivot"):
            self.register_buffer(name, getattr(start, name).detach().clone())
        n, layers, kv_heads, slots = start.gain.shape
        layers, kv_heads, heads = (
            layers if share != "shared" else 1,
            kv_heads if share == "head" else 1,
            start.bias.shape[2] if share == "head" else 1,
        )
        like = start.gain
        self.log_gain = nn.Parameter(like.new_zeros(n, layers, kv_heads, slots))
        self.shift = nn.Parameter(like.new_zeros(n, layers, heads, slots))

    def resolved(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gains [R, L, G, S] and biases [R, L, H, S] of the documents `rows` (all by default)."""
        start, bias, pivot, log_gain, shift = (
            x if rows is None else x[rows]
            for x in (self.gain, self.bias, self.pivot, self.log_gain, self.shift)
        )
        gain = start * log_gain.exp()
        groups = bias.shape[2] // gain.shape[2]
        turned = (gain - start).repeat_interleave(groups, dim=2) * pivot
        return gain, bias + shift - turned
