"""Which implementation a model's attention has, while any thread is in a block of ours.

A model has one attention implementation for all threads, and every thread its own blocks. So the implementation is ours from
the first block that is entered until the last one is left, and a thread that is in none of them may not call the model
meanwhile: it would get the bare model where somebody believes that a memory is attached, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from cedkv.core.errors import UserError
from cedkv.injection.replay import Entry, replayed
from cedkv.models.families import UNROUTED, UnreachableError
from cedkv.models.layers import decoder_of

PREFIX = "cedkv_"
CARRIERS = ("sdpa", "eager")

_LOCK = Lock()
_BLOCKS: WeakKeyDictionary[PreTrainedModel, tuple[int, ExitStack]] = WeakKeyDictionary()
"""By decoder: how many blocks there are, and what is undone when the last one is left."""
_MEMBERS: WeakKeyDictionary[PreTrainedModel, frozenset[nn.Module]] = WeakKeyDictionary()


def implementation(model: PreTrainedModel) -> str:
    """What the model's attention is outside of all blocks."""
    found: str = decoder_of(model).config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    return found.removeprefix(PREFIX)


def members(model: PreTrainedModel) -> frozenset[nn.Module]:
    """Every module within the model; looked for once."""
    found = _MEMBERS.get(model)
    if found is None:
        found = _MEMBERS[model] = frozenset(model.modules()) - {model}
    return found


@contextmanager
def switched(model: PreTrainedModel, entry: Entry) -> Iterator[None]:
    """Within the block, and within those of other threads, attention functions of the model are ours.

    Args:
        entry: what layers take from a block that they may be run again in (see `cedkv.injection.replay`).

    Raises:
        UserError: an implementation that cannot carry slots, or a family that does not let it be set.
    """
    stock, decoder = implementation(model), decoder_of(model)
    if stock not in CARRIERS:
        raise UserError(
            f"attention implementation {stock!r} cannot carry slots: load the model with 'sdpa' or 'eager'"
        )
    with _LOCK:
        if decoder not in _BLOCKS:
            with ExitStack() as ours:
                ours.callback(replayed(decoder, entry))
                _switch(decoder, PREFIX + stock)
                ours.callback(_switch, decoder, stock)
                _BLOCKS[decoder] = 0, ours.pop_all()
        count, ours = _BLOCKS[decoder]
        _BLOCKS[decoder] = count + 1, ours
    try:
        yield
    finally:
        with _LOCK:
            count, ours = _BLOCKS.pop(decoder)
            if count > 1:
                _BLOCKS[decoder] = count - 1, ours
            else:
                ours.close()


def _switch(decoder: PreTrainedModel, name: str) -> None:
    """Set the attention implementation; transformers itself only warns where it cannot."""
    if decoder.config._attn_implementation == name:  # noqa: SLF001
        return
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:  # noqa: SLF001
        raise UnreachableError(decoder.config.model_type, UNROUTED)
