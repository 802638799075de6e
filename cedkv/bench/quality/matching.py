"""Attention matching in closed form: few keys that weigh and give what a document's many keys do.

After Zweiger et al. (2026), "Fast KV Compaction via Attention Matching", in the variant with the keys of highest
attention and queries on policy (layer by layer, with the layers below compacted already). Own implementation.

For reference queries q and the document's keys K and values V, a compact key C_j with the bias b_j weighs
exp(q·C_j + b_j). The t keys are those of the document with the highest attention (root mean square over queries); then
Σ_j exp(q·C_j) w_j ≈ Σ_i exp(q·K_i) is solved for w = exp(b), relative to the right side, and the values are the
least-squares solution for the attention output.

Both systems may have more unknowns than they have directions. A ridge pulls what they leave open towards what the keys
had in the document: w = 1 and their own values. With t = all keys that is the solution, and nothing changes.

Shapes: n queries, D document tokens, d head size of keys, e of values, t kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from cedkv.injection.merge import Scoring

BOUNDS = (math.exp(-3.0), math.exp(3.0))
"""Of w, as published: a kept key must not vanish, nor carry a bias that drowns everything else."""
RIDGE = 1e-6
"""Relative to the mean square of the system."""


@dataclass(frozen=True, slots=True)
class Compact:
    """Key [t, d], bias [t] and value [t, e] of one kv head, and which tokens they come from, ascending."""

    key: Tensor
    bias: Tensor
    value: Tensor
    kept: Tensor


def match(query: Tensor, key: Tensor, value: Tensor, count: int, scoring: Scoring) -> Compact:
    """Compact `key` [D, d] and `value` [D, e] to `count`, for `query` [n, d]. All in float64, on the CPU."""
    query, key, value = (x.cpu().double() for x in (query, key, value))
    scores = scoring(query, key.T)
    attention = scores.softmax(-1)
    kept = attention.square().mean(0).topk(count).indices.sort().values
    weight = masses(attention[:, kept])
    # The kept keys share what they have among themselves, as the document's did.
    shares = (scores[:, kept] + weight.log()).softmax(-1)
    return Compact(key[kept], weight.log(), values_for(shares, attention @ value, value[kept]), kept)


def masses(attention: Tensor, bounds: tuple[float, float] = BOUNDS) -> Tensor:
    """Weights w [t] with attention [n, t] · w ≈ 1: the kept keys together weigh as all keys did, whatever is asked."""
    ridge = math.sqrt(RIDGE * attention.square().sum(0).mean().item())
    system = torch.cat([attention, ridge * torch.eye(attention.shape[1], dtype=attention.dtype)])
    wanted = torch.ones(system.shape[0], dtype=attention.dtype)
    wanted[len(attention) :] = ridge
    found = lsq_linear(system.numpy(), wanted.numpy(), bounds=bounds, method="bvls", tol=1e-12)
    return torch.from_numpy(found.x)


def values_for(shares: Tensor, output: Tensor, before: Tensor) -> Tensor:
    """X [t, e] with shares [n, t] · X ≈ output [n, e], as near to `before` [t, e] as that leaves open."""
    gram = shares.T @ shares
    ridge = RIDGE * gram.diagonal().mean()
    missing = shares.T @ (output - shares @ before)
    return before + torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), missing)
