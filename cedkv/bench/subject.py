"""What is measured: a frozen model, prompts, and memories of real documents at its top layers and at all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cedkv.bench.base import base_config
from cedkv.bench.options import EMBEDDED, SHAPES, Options, Shape
from cedkv.core.errors import UserError
from cedkv.injection import capture
from cedkv.injection.tree import Ids
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, resolve_scope
from cedkv.models.load import load_model
from cedkv.models.random_weights import random_model
from cedkv.models.types import CausalLM

SHORTEST, LONGEST, LENGTHS = 8, 40, 8
DOCUMENTS = 8
"""Documents that are captured; every memory takes slots of its own from one of them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with something to ask it. `documents` are atoms at all layers."""

    name: str
    model: CausalLM
    prompts: tuple[Ids, ...]
    documents: tuple[Atoms, ...]
    document_ids: tuple[Ids, ...]
    slots: int

    @property
    def top(self) -> tuple[int, ...]:
        """The layers of `top25`, which memories have by default."""
        return resolve_scope("top25", list(attention_modules(self.model).values()))

    @property
    def every(self) -> tuple[int, ...]:
        """All attention layers."""
        return tuple(layer.index for layer in attention_modules(self.model).values())

    @property
    def windowed(self) -> bool:
        """Whether some layer has a sliding window."""
        return any(layer.window is not None for layer in attention_modules(self.model).values())

    def states(self, count: int, layers: Sequence[int]) -> States:
        """`count` memories: real keys and values, at positions drawn from a document. The same at any `layers`."""
        parts = []
        for n in range(count):
            atoms = self.documents[n % len(self.documents)]
            generator = torch.Generator().manual_seed(n)
            pick = torch.randperm(len(atoms.types), generator=generator)[: self.slots].to(self.model.device)
            keys = {i: atoms.keys[i][None, :, pick] for i in layers}
            parts.append(States(keys, {i: atoms.values[i][None, :, pick] for i in layers}))
        return States.stack(parts)


def check_model(name: str) -> None:
    """Raise `UserError` for a name that is neither the embedded model's nor a shape's."""
    if name != EMBEDDED and name not in SHAPES:
        raise UserError(
            f"--model {name!r} is neither {EMBEDDED!r} nor a shape: use one of {', '.join(SHAPES)}"
        )


def load_subject(options: Options) -> Subject:
    """The model and the prompts that were asked for."""
    if options.model == EMBEDDED:
        return _embedded(options)
    shape = SHAPES[options.model]
    return of_shape(options.model, shape, options, mixed_prompts(options.scale.prompts, shape))


def of_shape(name: str, shape: Shape, options: Options, prompts: Sequence[Ids]) -> Subject:
    """A random-weight model of `shape` with documents of random tokens."""
    model = random_model(shape.family, shape.settings, dtype=options.dtype, device=options.device)
    slots, vocabulary = options.scale.slots, shape.settings["vocab_size"]
    documents = [random_tokens(4 * slots, vocabulary, seed=-1 - n) for n in range(DOCUMENTS)]
    return Subject(name, model, tuple(prompts), _captured(model, documents), tuple(documents), slots)


def mixed_prompts(count: int, shape: Shape) -> list[Ids]:
    """Random tokens in eight lengths from 8 to 40."""
    step = (LONGEST - SHORTEST) / (LENGTHS - 1)
    lengths = [round(SHORTEST + step * (n % LENGTHS)) for n in range(count)]
    return [random_tokens(length, shape.settings["vocab_size"], seed=n) for n, length in enumerate(lengths)]


def prompts_of_one_length(subject: Subject, count: int, length: int) -> tuple[Ids, ...]:
    """`count` prompts of the length that is most frequent; where these are too few, random tokens of `length`."""
    common, times = Counter(map(len, subject.prompts)).most_common(1)[0]
    if times >= count:
        return tuple(prompt for prompt in subject.prompts if len(prompt) == common)[:count]
    vocabulary = subject.model.config.get_text_config().vocab_size
    return tuple(random_tokens(length, vocabulary, seed=1000 + n) for n in range(count))


def random_tokens(length: int, vocabulary: int, *, seed: int) -> Ids:
    """Token ids without the first three, which are special ones."""
    generator = torch.Generator().manual_seed(seed % 2**31)
    return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())


def _embedded(options: Options) -> Subject:
    """The model that ships with the package, with the stress prompts and documents of configs/base.yaml."""
    from cedkv.data.build import build_corpus
    from cedkv.data.encode import encode_corpus

    config = base_config()
    loaded = load_model(EMBEDDED, dtype=options.dtype, device=options.device)
    encoded = encode_corpus(config, build_corpus(config), loaded.tokenizer, loaded.context_length)
    count = min(options.scale.prompts, len(encoded.stress))
    rows = encoded.stress[:: len(encoded.stress) // count][:count]
    documents = [context.ids for context in encoded.contexts[:DOCUMENTS]]
    return Subject(
        EMBEDDED,
        loaded.model,
        tuple(row.prompt for row in rows),
        _captured(loaded.model, documents),
        tuple(documents),
        options.scale.slots,
    )


def _captured(model: CausalLM, documents: Sequence[Ids]) -> tuple[Atoms, ...]:
    """Every third token a delimiter, so that the delimiter rule has work to do."""
    return tuple(
        capture(model, f"d{n}", ids, tuple("delimiter" if i % 3 == 2 else "content" for i in range(len(ids))))
        for n, ids in enumerate(documents)
    )
