"""Are the adapters that were trained side by side peft's? A sample of them is loaded into peft itself and compared."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cedkv.bench import peers
from cedkv.bench.quality.adapters import SCALE, Adapters, LowRank, Slots
from cedkv.bench.quality.fit import answers
from cedkv.bench.quality.result import Check
from cedkv.core.losses import kl_divergence
from cedkv.train.experiment import Experiment

Kind = Literal["prefix", "cartridge", "lora"]
TOLERANCE = 1e-3
"""Relative, of loss, gradient and KLs: float32 sums in another order, through all layers."""
ON, OFF = 8, 32
"""Prompts of each kind that are compared."""


def identity(experiment: Experiment, adapters: Adapters, kind: Kind) -> tuple[Check, ...]:
    """Loss and gradient over ON training prompts, and KL to the base over stress prompts, of the first and last document."""
    documents = sorted({0, len(experiment.encoded.contexts) - 1})
    found = [_apart(experiment, adapters, kind, n) for n in documents]
    names = ("loss", "gradient", "KL to the base")
    return tuple(
        Check(f"peft's own passes, {name} of {len(documents)} adapters", max(column), TOLERANCE)
        for name, column in zip(names, zip(*found, strict=True), strict=True)
    )


def _apart(experiment: Experiment, adapters: Adapters, kind: Kind, n: int) -> tuple[float, float, float]:
    """How far loss, gradient and KLs of document `n` are from what peft gives, relative to the largest entry."""
    peer, trained = in_peft(experiment, adapters, kind, n)
    on = [(i, row) for i, row in enumerate(experiment.encoded.on_train) if row.document == n][:ON]
    rows = torch.full((len(on),), n, device=experiment.model.device)
    said = answers(adapters, [(row.prompt, row.answer) for _, row in on], rows)
    loss = torch.stack(
        [kl_divergence(experiment.teacher_train[i], s).mean() for (i, _), s in zip(on, said, strict=True)]
    ).mean()
    gradient = torch.cat([g[n].flatten() for g in torch.autograd.grad(loss, list(adapters.parameters()))])
    theirs = torch.stack(
        [
            kl_divergence(
                experiment.teacher_train[i],
                peers.log_probs(peer, _ids(row.prompt + row.answer[:-1], rows), len(row.answer))[0],
            ).mean()
            for i, row in on
        ]
    ).mean()
    their_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(theirs, trained)])
    with torch.no_grad():
        mine, other = (_drifts(experiment, run, n) for run in (adapters, peer))
    return _far(loss[None], theirs[None]), _far(gradient, their_gradient), _far(mine, other)


def _drifts(experiment: Experiment, run: nn.Module, n: int) -> Tensor:
    """KL(student || base) of some stress prompts, one pass each, under our adapters or under peft's model."""
    found = []
    for row in experiment.encoded.stress[:OFF]:
        ids = _ids(row.prompt, torch.zeros(1, device=experiment.model.device))
        if isinstance(run, Adapters):
            student = run.logits(ids, torch.tensor([n], device=ids.device), 1).float().log_softmax(-1)
        else:
            student = peers.log_probs(run, ids)
        found.append(kl_divergence(student, peers.log_probs(experiment.model, ids))[0, 0])
    return torch.stack(found)


def in_peft(
    experiment: Experiment, adapters: Adapters, kind: Kind, n: int
) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy of the model inside peft with the adapter of document `n`, and its parameters in our order."""
    model = deepcopy(experiment.model)
    if isinstance(adapters, Slots):
        assert kind != "lora"
        peer = peers.adapter(model, kind, adapters.table.shape[1])
        encoder = peers.parameters(peer)
        encoder.load_prompt_embeddings(adapters.table[n].detach())  # type: ignore[operator]
        return peer, [p for p in encoder.parameters() if p.requires_grad]
    assert isinstance(adapters, LowRank)
    import peft

    rank = adapters.down[0].shape[1]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=SCALE * rank)
    peer = peft.get_peft_model(model, config).eval()
    modules: list[Any] = [m for m in peer.modules() if hasattr(m, "lora_A")]
    downs = [m.lora_A["default"].weight for m in modules]
    ups = [m.lora_B["default"].weight for m in modules]
    with torch.no_grad():
        for theirs, ours in zip([*downs, *ups], [*adapters.down, *adapters.up], strict=True):
            theirs.copy_(ours[n])
    return peer, [*downs, *ups]


def _ids(tokens: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor([tokens], device=like.device)


def _far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()
