"""Gradient checkpointing runs layers a second time, in the backward pass, when the block they ran in may have been left.

What a layer takes from its block, the slots, is handed to the checkpoint like the layer's own inputs, so that gradients reach
it in whichever way the checkpoint computes them; the second run gets a block of its own around these inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Any, cast

from torch import Tensor, nn

from cedkv.core.errors import UserError

Block = Callable[[Sequence[Tensor]], AbstractContextManager[None]]
Entry = Callable[[nn.Module], tuple[list[Tensor], Block]]
"""For a module that is about to run: what it takes from the block it is in, and that block around other such tensors."""


def replayed(model: nn.Module, entry: Entry) -> Callable[[], None]:
    """Have checkpointed layers of `model` run again in the block they ran in, until what is returned is called.

    Observers of the block see the first run only; a reentrant checkpoint makes no graph in it.

    Raises:
        UserError: a checkpoint that loses gradients.
    """
    before: dict[Any, Callable[..., Any]] = {
        module: cast("Any", module)._gradient_checkpointing_func  # noqa: SLF001 - transformers has no public name for it
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False)
    }
    shares = getattr(getattr(model, "config", None), "num_kv_shared_layers", 0)
    if shares and any(
        getattr(checkpoint, "keywords", {}).get("use_reentrant") for checkpoint in before.values()
    ):
        raise UserError(
            f"the last {shares} layers attend to keys of earlier ones, whose gradients a reentrant checkpoint loses: "
            "checkpoint with use_reentrant=False"
        )
    for module, checkpoint in before.items():
        module._gradient_checkpointing_func = partial(_checkpointed, module, checkpoint, entry)  # noqa: SLF001

    def undo() -> None:
        for module, checkpoint in before.items():
            module._gradient_checkpointing_func = checkpoint  # noqa: SLF001

    return undo


def _checkpointed(
    module: nn.Module,
    checkpoint: Callable[..., Any],
    entry: Entry,
    run: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    taken, block = entry(module)
    runs = count()

    def go(*given: Any) -> Any:
        if not next(runs):
            return run(*given[: len(args)])  # the block is still there
        with block(given[len(args) :]):
            return run(*given[: len(args)])

    return checkpoint(go, *args, *taken, **kwargs)


def refuse_checkpointing(model: nn.Module) -> None:
    """Refuse a model whose layers would run again, for passes that are put together from parts of layers."""
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UserError(
            "gradient checkpointing would run parts of layers again when what was kept of prompts is gone: switch it off, or "
            "call model.eval(): a frozen model needs neither"
        )
