"""The state of a training between two steps, as tensors and JSON, and back: what it takes to go on bit for bit.

Everything that a step or a tick reads and changes is here. What `prepare` makes is not: it is made again, the same.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cedkv.core.dual import DualState
from cedkv.core.warn import WarnState
from cedkv.train.hard_pool import HardPool
from cedkv.train.keep import Kept
from cedkv.train.outcome import Traces
from cedkv.train.proxy import Scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cedkv.train.loop import Trainer

_BANK, _ADAM, _BEST = "bank.", "adam.", "best."
_ORDERS = ("on_order", "off_order")


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters, Adam's moments, the best feasible memory, and the state of every generator."""
    found = {_BANK + name: p.detach() for name, p in trainer.bank.named_parameters()}
    for number, moments in trainer.optimiser.state_dict()["state"].items():
        found |= {f"{_ADAM}{number}.{name}": x for name, x in moments.items()}
    if (best := trainer.keeper.best) is not None:
        found |= {_BEST + name: x for name, x in best.parameters.items()}
    return found | {name: getattr(trainer, name).get_state() for name in _ORDERS}


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The rest, as JSON holds it."""
    best, finite, watch = trainer.keeper.best, trainer.finite, trainer.delimiters
    return {
        "dual": asdict(trainer.dual),
        "warning": asdict(trainer.warning),
        "pool": asdict(trainer.pool),
        "scale": asdict(trainer.scale),
        "source_left_at": trainer.source.left_at,
        "ticks": trainer.ticks,
        "finite": {"total": finite.total, "streak": finite.streak, "began": finite.began},
        "best": None
        if best is None
        else {"step": best.step, "k": best.k, "p99": best.p99, "on_loss": best.on_loss},
        "delimiters": {
            "near": sorted(watch.near, key=str),
            "first_step": watch.first_step,
            "changes": watch.changes,
        },
        # Not copied row by row: they grow with the run.
        "traces": {f.name: getattr(trainer.traces, f.name) for f in fields(trainer.traces)},
        "seconds": trainer.clock.seconds,
    }


def restore(trainer: Trainer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put both into a trainer of the same experiment that has done nothing yet."""
    with torch.no_grad():
        for name, parameter in trainer.bank.named_parameters():
            parameter.copy_(tensors[_BANK + name])
    optimiser = trainer.optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, x in _under(tensors, _ADAM).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = x
    trainer.optimiser.load_state_dict({**optimiser, "state": moments})
    for name in _ORDERS:
        getattr(trainer, name).set_state(tensors[name])
    if (best := state["best"]) is not None:
        device = trainer.bank.logits.device
        parameters = {name: x.to(device) for name, x in _under(tensors, _BEST).items()}
        trainer.keeper.best = Kept(**best, parameters=parameters)
    trainer.dual = DualState(**state["dual"])
    trainer.warning = WarnState(**state["warning"])
    trainer.pool = HardPool(*(tuple(state["pool"][name]) for name in ("indices", "deltas")))
    trainer.scale = Scale(**state["scale"])
    trainer.source.left_at = state["source_left_at"]
    trainer.ticks = state["ticks"]
    for name, value in state["finite"].items():
        setattr(trainer.finite, name, value)
    watch = state["delimiters"]
    trainer.delimiters.near = {(document, slot) for document, slot in watch["near"]}
    trainer.delimiters.first_step, trainer.delimiters.changes = watch["first_step"], watch["changes"]
    trainer.traces = Traces(**state["traces"])
    trainer.clock.add(state["seconds"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
