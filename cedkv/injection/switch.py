"""Which implementation a model's attention has, while any thread is in a block of ours.

A model has one attention implementation for all threads, and every thread its own blocks. So the implementation is ours from
the first block that is entered until the last one is left, and a thread that is in none of them may not call the model
meanwhile: it would get the bare model where somebody believes that a memory is attached, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from cedkv.core.errors import UserError

PREFIX = "cedkv_"
CARRIERS = ("sdpa", "eager")

_LOCK = Lock()
_BLOCKS: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
_MEMBERS: WeakKeyDictionary[PreTrainedModel, frozenset[nn.Module]] = WeakKeyDictionary()


def implementation(model: PreTrainedModel) -> str:
    """What the model's attention is outside of all blocks."""
    found: str = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    return found.removeprefix(PREFIX)


def members(model: PreTrainedModel) -> frozenset[nn.Module]:
    """Every module within the model; looked for once."""
    found = _MEMBERS.get(model)
    if found is None:
        found = _MEMBERS[model] = frozenset(model.modules()) - {model}
    return found


@contextmanager
def switched(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, and within those of other threads, attention functions of the model are ours.

    Raises:
        UserError: an implementation that cannot carry slots, or a family that does not let it be set.
    """
    stock = implementation(model)
    if stock not in CARRIERS:
        raise UserError(
            f"attention implementation {stock!r} cannot carry slots: load the model with 'sdpa' or 'eager'"
        )
    with _LOCK:
        before = _BLOCKS.get(model, 0)
        if not before:
            _switch(model, PREFIX + stock)
        _BLOCKS[model] = before + 1
    try:
        yield
    finally:
        with _LOCK:
            _BLOCKS[model] -= 1
            if not _BLOCKS[model]:
                del _BLOCKS[model]
                _switch(model, stock)


def _switch(model: PreTrainedModel, name: str) -> None:
    """Set the attention implementation; transformers itself only warns where it cannot."""
    if model.config._attn_implementation == name:  # noqa: SLF001
        return
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:  # noqa: SLF001
        raise UserError(
            f"model family {model.config.model_type!r} does not route its attention through transformers' attention "
            "interface, so injected slots would be ignored: use a family that does"
        )
