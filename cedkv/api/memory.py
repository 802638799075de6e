"""A memory in somebody's program: load it, see what it is, attach it to the model it was made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from cedkv.api.match import check_layers, check_model, check_tokenizer
from cedkv.core.errors import UserError
from cedkv.data.lines import suggestion
from cedkv.injection import inject
from cedkv.memory.export import DESCRIBED, TENSORS, Origin, StoredMemory, read_memory
from cedkv.memory.state import States
from cedkv.memory.union import union
from cedkv.models.layers import attention_modules
from cedkv.models.types import CausalLM, Tokenizer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
State = str | Sequence[str]
"""The name of a document whose slots are attached, or several names: the slots of all of them."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A memory that is attached to a model, for the length of a `with` block."""

    model: CausalLM
    states: States | None
    rows: Tensor | None

    def bind(self, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """``function``, with the memory attached to the model while it runs, in whatever thread and however long.

        Threads do not inherit `with` blocks. To stream: ``Thread(target=attached.bind(model.generate), kwargs=...)``.
        """

        @wraps(function)
        def bound(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with inject(self.model, self.states, self.rows):
                return function(*args, **kwargs)

        return bound


@dataclass(frozen=True)
class Memory:
    """The memories of some documents, as one folder holds them: each a state that can be attached to a model.

    ``states`` hold keys and values [N, kv heads, slots, head size] of each injected layer; ``documents`` the N names.
    """

    states: States
    documents: tuple[str, ...]
    origin: Origin
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> Memory:
        """The memory in ``folder``, with its hash, its shapes and its numbers checked.

        Raises:
            UserError: there is none, it is damaged, or of a format that this version does not read.
        """
        stored = stored_in(Path(folder))
        return cls(stored.states, stored.documents, stored.origin, stored.provenance)

    @property
    def bytes_per_document(self) -> int:
        """What one document's slots take in the type that they are stored in."""
        return self.states.bytes_each

    def check(self, model: CausalLM, tokenizer: Tokenizer | None = None) -> None:
        """Raise `UserError`, with what differs, where the memory was made for another model or tokenizer.

        The first check of a model reads all of its weights; later ones only whether any was written to.
        """
        check_model(self.origin, model)
        if tokenizer is not None:
            check_tokenizer(self.origin, tokenizer)

    @contextmanager
    def attach(
        self,
        model: CausalLM,
        state: State | None = None,
        *,
        rows: Sequence[State | None] | None = None,
        check: bool = True,
    ) -> Iterator[Attached]:
        """Within the block ``model`` attends to the slots of a state, however it is called: forward, generate, a pipeline.

        Args:
            model: the model that the memory was made for, frozen or not.
            state: for every row: a document's name, several names for the slots of all of them, or None for the bare model.
            rows: instead, for each row of the batch. Beams and several returned sequences of a prompt have its state.
            check: whether to make sure that it is the model the memory was made for. Without it, it need only fit.

        Raises:
            UserError: a name that the memory does not have, both ``state`` and ``rows``, another model.
        """
        if state is not None and rows is not None:
            raise UserError("attach() is given both `state` and `rows`: give one of them")
        if check:
            self.check(model)
        check_layers(self.states, model)
        chosen, states = [self.group(name) for name in ([state] if rows is None else rows)], None
        if any(chosen):
            states = placed(union(self.states, chosen), model)
        each = None if rows is None or states is None else torch.arange(len(rows), device=model.device)
        with inject(model, states, each):
            yield Attached(model, states, each)

    def group(self, state: State | None) -> tuple[int, ...]:
        """The numbers of the states that are attached for ``state``; ``UserError`` for a name there is not, or given twice."""
        names = () if state is None else (state,) if isinstance(state, str) else tuple(state)
        unknown = [name for name in names if name not in self.documents]
        if unknown:
            raise UserError(
                f"state {unknown[0]!r} is no document of this memory{suggestion(unknown[0], self.documents)}; it has {_shown(self.documents)}"
            )
        if len(set(names)) < len(names):
            raise UserError(
                f"states {list(names)} name one twice: its slots would count double; name each once"
            )
        return tuple(self.documents.index(name) for name in names)


def stored_in(folder: Path) -> StoredMemory:
    """What a memory's folder holds; `UserError` as `Memory.load`."""
    if not (folder / DESCRIBED).is_file():
        raise UserError(
            f"{str(folder)!r} holds no {DESCRIBED}: a memory is a folder of {TENSORS} and {DESCRIBED}; make one with "
            "cedkv memory export RUN_ID"
        )
    return read_memory(folder / TENSORS, folder / DESCRIBED)


def placed(states: States, model: CausalLM) -> States:
    """``states`` in the model's type, each layer's where that layer is: a model may lie on several devices."""
    where = {
        layer.index: next(module.parameters(), model).device
        for module, layer in attention_modules(model).items()
    }

    def moved(tensors: Mapping[int, Tensor], dtype: torch.dtype | None) -> dict[int, Tensor]:
        return {i: x.to(where[i], dtype) for i, x in tensors.items()}

    bias = None if states.bias is None else moved(states.bias, None)
    return States(moved(states.keys, model.dtype), moved(states.values, model.dtype), bias=bias)


def _shown(names: Sequence[str]) -> str:
    told = ", ".join(map(repr, names[:8]))
    return told if len(names) <= 8 else f"{told} and {len(names) - 8} more"
