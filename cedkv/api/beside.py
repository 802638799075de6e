"""One prompt answered three ways: by the bare model, with a memory attached, and with the document in the context."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cedkv.api.memory import Memory, State
from cedkv.core.losses import kl_divergence
from cedkv.data.encode import encode_context, leading_special
from cedkv.data.records import Document
from cedkv.data.tokens import check_fits, encode_prompt
from cedkv.injection.trunk import log_probs
from cedkv.models.load import LoadedModel, context_length

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A continuation, token by token, with a divergence in nats at each: of what to what, ``kl_of`` tells.

    With the memory: KL(memory || bare model) on the way that the memory takes. With the document: KL(document || memory) on
    the document's way. The bare model has none.
    """

    name: str
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    kl_of: str

    @property
    def text(self) -> str:
        """The continuation as one text."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How continuations are chosen: greedy at temperature 0, else drawn, the same draw for every way."""

    tokens: int = 32
    temperature: float = 0.0
    seed: int = 0


def side_by_side(
    memory: Memory,
    loaded: LoadedModel,
    state: State,
    prompt: str,
    *,
    document: str | None = None,
    sampling: Sampling = Sampling(),
) -> list[Said]:
    """Continue ``prompt`` by the bare model, with the memory, and, where ``document`` is given, with its text in front.

    Raises:
        UserError: another model or tokenizer, an unknown state, more tokens than the model's context holds.
    """
    memory.check(loaded.model, loaded.tokenizer)
    bare = encode_prompt(loaded.tokenizer, prompt, name="the prompt")
    ways = {
        "bare model": _Way(loaded, bare, nullcontext),
        "memory": _Way(loaded, bare, lambda: memory.attach(loaded.model, state, check=False)),
    }
    if document is not None:
        ways["full context"] = _Way(loaded, _behind(memory, loaded, document, bare), nullcontext)
    for name, way in ways.items():
        check_fits(
            name,
            {"prompt": len(way.prompt), "continuation": sampling.tokens},
            context_length(loaded.model.config),
        )
    found = []
    for name, way in ways.items():
        said = way.continued(sampling)
        other = {"memory": "bare model", "full context": "memory"}.get(name)
        kl: tuple[float, ...] = ()
        if other is not None and said:
            kl = tuple(kl_divergence(way.log_probs(said), ways[other].log_probs(said)).tolist())
        found.append(Said(name, _pieces(loaded, said), kl, f"KL({name} || {other})" if other else ""))
    return found


@dataclass(frozen=True, slots=True)
class _Way:
    """The model, what it is given, and what is attached meanwhile."""

    loaded: LoadedModel
    prompt: Ids
    attached: Callable[[], AbstractContextManager[object]]

    @torch.no_grad()
    def continued(self, sampling: Sampling) -> Ids:
        """The tokens that follow, without the one that ends a text."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        drawn = (
            {"do_sample": True, "temperature": sampling.temperature}
            if sampling.temperature > 0
            else {"do_sample": False}
        )
        ids = torch.tensor([self.prompt], device=model.device)
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        with self.attached(), torch.random.fork_rng():
            torch.manual_seed(sampling.seed)
            whole = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.tokens,
                pad_token_id=pad,
                **drawn,
            )
        said: list[int] = whole[0, len(self.prompt) :].tolist()
        ends = model.generation_config.eos_token_id
        enders = set(ends if isinstance(ends, list) else [ends])
        return tuple(said[:-1] if said and said[-1] in enders else said)

    @torch.no_grad()
    def log_probs(self, said: Ids) -> Tensor:
        """What is expected at each token of a continuation: [tokens, V]."""
        ids = torch.tensor([self.prompt + said[:-1]], device=self.loaded.device)
        with self.attached():
            logits: Tensor = self.loaded.model(input_ids=ids, use_cache=False).logits[0, -len(said) :]
        return log_probs(logits)


def _behind(memory: Memory, loaded: LoadedModel, text: str, bare: Ids) -> Ids:
    """The prompt as it stands behind a document, put together as it was for the memory's teacher."""
    context = encode_context(loaded.tokenizer, Document("document", text), memory.origin.document_separator)
    skipped = 0 if memory.origin.repeat_bos else leading_special(loaded.tokenizer)
    return context.ids + bare[skipped:]


def _pieces(loaded: LoadedModel, said: Ids) -> tuple[str, ...]:
    """The text that each token adds to those before it."""
    pieces: list[str] = []
    before = ""
    for count in range(1, len(said) + 1):
        whole = str(loaded.tokenizer.decode(list(said[:count]), clean_up_tokenization_spaces=False))
        pieces.append(whole[len(before) :])
        before = whole
    return tuple(pieces)
