"""Warm start: which atoms the slots are anchored on, and which candidates they may mix.

Both follow from where the model itself looks. `on[p, d]` is the attention that ON training prompt p pays to document
token d in the teacher's context, averaged over the injected layers and heads that share an anchor; `off[u, d]` the same
for OFF prompts.

Shapes: L injected layers, G kv heads, P ON prompts, U OFF prompts, D document tokens, S slots, J candidates. A and H are
what has anchors of its own: L layers and G heads, or 1 where these share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cedkv.core.errors import UserError

AnchorShare = Literal["shared", "layer", "head"]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Positions in the document. `anchors` [A, H, S] never change; `candidates` [A, H, S, J] begin with the anchor; -1 pads.

    `layers` [S] is the injected layer whose attention is most on a slot's anchors, kept for the record.
    """

    anchors: Tensor
    candidates: Tensor
    prior: Tensor  # [A, H, S, J], sums to one: the warm-start share of each candidate
    layers: Tensor


def steered_attention(on: Tensor, off: Tensor, anti_steer_strength: float) -> Tensor:
    """[P, D]: attention of each ON prompt minus `anti_steer_strength` times the mean attention of OFF prompts."""
    return on - anti_steer_strength * off.mean(0, keepdim=True)


def choose_anchors(score: Tensor, allowed: Tensor, slots: int) -> Tensor:
    """Greedy cover: each slot takes the atom that adds most to what the ON prompts already find.

    A prompt counts its best anchor only, so that eight slots serve eight facts instead of the loudest one eight times.

    Args:
        score: [P, D], steered attention.
        allowed: [D] bool, candidate atoms.
        slots: how many anchors, at most the number of allowed atoms.

    Returns:
        [slots] positions, in the order they were taken.
    """
    covered = torch.zeros(score.shape[0], dtype=score.dtype, device=score.device)
    free = allowed.clone()
    chosen: list[int] = []
    for _ in range(slots):
        gain = (score - covered[:, None]).relu().sum(0)
        # Once nothing is left to cover, the best remaining atom by total score.
        gain = gain + 1e-6 * score.sum(0)
        best = int(gain.masked_fill(~free, -torch.inf).argmax())
        chosen.append(best)
        free[best] = False
        covered = torch.maximum(covered, score[:, best])
    return torch.tensor(chosen, device=score.device)


def choose_candidates(anchor: int, total: Tensor, allowed: Tensor, pool_size: int) -> tuple[Tensor, Tensor]:
    """The anchor, its nearest atoms (half of the pool) and the best-scored of the rest; and their prior shares.

    Args:
        anchor: position of the slot's anchor, an allowed one.
        total: [D], score of each atom for the prompts this slot serves.
        allowed: [D] bool.
        pool_size: J.

    Returns:
        candidates [J] (-1 pads a short document) and prior [J].
    """
    positions = torch.nonzero(allowed).flatten()
    near = positions[(positions - anchor).abs().argsort(stable=True)][: max(1, pool_size // 2)]
    rest = positions[~torch.isin(positions, near)]
    best = rest[total[rest].argsort(descending=True, stable=True)][: pool_size - len(near)]
    chosen = torch.cat([near, best])
    share = total[chosen].clamp_min(0) + 1e-6
    share[0] = 0.0
    prior = torch.zeros(pool_size, dtype=total.dtype, device=total.device)
    prior[: len(chosen)] = 0.1 * share / share.sum() if len(chosen) > 1 else share
    prior[0] = 1.0 - prior.sum()
    padded = torch.full((pool_size,), -1, dtype=torch.long, device=total.device)
    padded[: len(chosen)] = chosen
    return padded, prior


def plan_slots(
    document: str,
    types: tuple[str | None, ...],
    on: Tensor,
    off: Tensor,
    *,
    slots: int,
    pool_size: int,
    atom_types: tuple[str, ...],
    anti_steer_strength: float,
    share: AnchorShare = "shared",
) -> SlotPlan:
    """Anchors and candidates of one document.

    Args:
        document: its id, for messages.
        types: atom type of each of its D tokens; None marks special tokens.
        on: [L, G, P, D] attention by injected layer and kv head; off: [L, G, U, D].
        share: whether all layers and heads have one anchor, each layer its own, or each layer and kv head.

    Raises:
        UserError: the document has no candidate that is not a delimiter, or fewer of them than slots.
    """
    allowed = torch.tensor([t in atom_types for t in types], device=on.device)
    # An anchor lends its value to Phase 2 and to unmixed layers: a delimiter there would evade the cap.
    eligible = torch.tensor([t in atom_types and t != "delimiter" for t in types], device=on.device)
    if not eligible.any():
        raise UserError(
            f"document {document!r} has no candidate atom that is not a delimiter (atom types allowed: {', '.join(atom_types)}): "
            "give it text with words, or allow more in phase3.candidate.atom_types"
        )
    if int(eligible.sum()) < slots:
        raise UserError(
            f"document {document!r} has {int(eligible.sum())} candidate atoms that are no delimiters, for {slots} slots: "
            "lower phase3.memory.slots or give a longer document"
        )
    kept = {"shared": (0, 1), "layer": (1,), "head": ()}[share]
    seen_on, seen_off = (x.mean(kept, keepdim=True) if kept else x for x in (on, off))
    parts = [
        _plan_alone(steered_attention(one, other, anti_steer_strength), eligible, allowed, slots, pool_size)
        for one, other in zip(seen_on.flatten(0, 1), seen_off.flatten(0, 1), strict=True)
    ]
    anchors, candidates, prior = (
        torch.stack(x).unflatten(0, seen_on.shape[:2]) for x in zip(*parts, strict=True)
    )
    # [L, G, S]: what each layer and head sees of the anchors it has.
    seen = on.mean(2).gather(-1, anchors.expand(*on.shape[:2], slots))
    return SlotPlan(anchors, candidates, prior, seen.mean(1).argmax(0))


def _plan_alone(
    score: Tensor, eligible: Tensor, allowed: Tensor, slots: int, pool_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [S], candidates [S, J] and their prior, by the scores [P, D] of what shares them."""
    anchors = choose_anchors(score, eligible, slots)
    serves = score[:, anchors].argmax(1)
    pairs = []
    for index, anchor in enumerate(anchors.tolist()):
        mine = score[serves == index]
        total = (mine if len(mine) else score).sum(0)
        pairs.append(choose_candidates(anchor, total, allowed, pool_size))
    return anchors, torch.stack([c for c, _ in pairs]), torch.stack([p for _, p in pairs])
