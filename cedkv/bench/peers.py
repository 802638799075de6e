"""What cedkv is compared with: whole passes of the plain model, and peft's prompt learning.

Each peer is given what an honest engineer would give it: rows in batches of one length without padding, the output head
at the positions that matter only (and see `log_probs`), the base's answers computed once, and the same KL.

peft puts its virtual tokens into the cache of every layer and the prompt at positions S and up. It knows one memory at a
time, so that states are a loop around its passes.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence, kl_from_logits
from cedkv.injection import inject
from cedkv.injection.attention import armed
from cedkv.injection.tree import Ids
from cedkv.memory.state import States
from cedkv.models.layers import in_one_piece
from cedkv.models.types import CausalLM

Kind = Literal["cartridge", "prefix"]
KINDS: tuple[Kind, ...] = ("cartridge", "prefix")
CALLED = {"cartridge": "peft CartridgeConfig", "prefix": "peft PrefixTuningConfig"}


@dataclass(frozen=True, slots=True)
class Group:
    """P prompts of one length: their places, ids [P, T], and what the base says behind the last one [P, V]."""

    places: list[int]
    ids: Tensor
    base: Tensor


def check_peft() -> None:
    """Raise `UserError` where peft is not installed, or older than its cartridges."""
    if find_spec("peft") is not None:
        import peft

        if hasattr(peft, "CartridgeConfig"):
            return
    raise UserError(
        "peft with CartridgeConfig, which is measured beside cedkv, is not installed: "
        "pip install -c constraints.txt -e '.[peers]', or leave its rows out with --no-peers"
    )


def logits_of(model: nn.Module, ids: Tensor, keep: int = 1, **inputs: Any) -> Tensor:
    """Logits [B, keep, V] behind the last `keep` positions."""
    with in_one_piece(model):
        found: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=keep, **inputs).logits[:, -keep:]
    return found


def log_probs(model: nn.Module, ids: Tensor, keep: int = 1, **inputs: Any) -> Tensor:
    """Log-probabilities [B, keep, V] behind the last `keep` positions, at least float32."""
    logits = logits_of(model, ids, keep, **inputs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _kl(logits: Tensor, base: Tensor) -> Tensor:
    """KL(student || base) [P, N] of logits [N · P, 1, V], computed as cedkv computes it."""
    rows = logits.view(1, -1, *base.shape)
    return kl_from_logits(rows, base[None])[0][0].float().T


@torch.no_grad()
def groups(model: CausalLM, prompts: Sequence[Ids], rows: int) -> list[Group]:
    """Prompts of one length together, at most `rows`, with what the base says to them."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_length[len(prompt)].append(place)
    found = []
    for _, places in sorted(by_length.items()):
        for start in range(0, len(places), rows):
            part = places[start : start + rows]
            ids = torch.tensor([prompts[place] for place in part], device=model.device)
            found.append(Group(part, ids, log_probs(model, ids)[:, 0]))
    return found


@torch.no_grad()
def plain_kl(model: CausalLM, states: States, found: Sequence[Group], batch_rows: int) -> Tensor:
    """KL(student || base) [U, N] by whole passes with the memory injected, as many prompts × states as fit a pass."""
    kl = torch.empty(_prompts(found), states.count, device=model.device)
    at_once = max(1, batch_rows // states.count)
    with armed(model):
        for group in found:
            for part, ids, base in _parts(group, at_once):
                rows = torch.arange(states.count, device=model.device).repeat_interleave(len(part))
                with inject(model, states, rows):
                    kl[part] = _kl(logits_of(model, ids.repeat(states.count, 1)), base)
    return kl.cpu()


@torch.no_grad()
def peft_kl(peer: nn.Module, states: States, found: Sequence[Group]) -> Tensor:
    """KL(student || base) [U, N] by peft's passes: one state after the other, loaded into the adapter."""
    kl = torch.empty(_prompts(found), states.count, device=found[0].ids.device)
    for n in range(states.count):
        load(peer, states, n)
        for group in found:
            kl[group.places, n] = _kl(logits_of(peer, group.ids), group.base)[:, 0]
    return kl.cpu()


@torch.no_grad()
def shifted_kl(model: CausalLM, states: States, found: Sequence[Group]) -> Tensor:
    """What `peft_kl` has to give, by injection: slots at positions 0 to S, which sliding windows lose, prompts behind."""
    kl = torch.empty(_prompts(found), states.count)
    for n in range(states.count):
        one = behind_slots(states.select(torch.tensor([n], device=model.device)))
        for group in found:
            with inject(model, one):
                student = log_probs(model, group.ids, position_ids=shifted(group.ids, states.slots))[:, 0]
            kl[group.places, n] = kl_divergence(student, group.base).cpu()
    return kl


def behind_slots(one: States) -> States:
    """One state whose slots stand right before the prompt."""
    return States(
        one.keys, one.values, torch.arange(-one.slots, 0, device=next(iter(one.keys.values())).device)
    )


def shifted(ids: Tensor, slots: int) -> Tensor:
    """Positions [1, T] from `slots` on."""
    return torch.arange(slots, slots + ids.shape[1], device=ids.device)[None]


def adapter(model: CausalLM, kind: Kind, slots: int) -> nn.Module:
    """The model inside peft: `slots` virtual tokens, whose keys and values are the parameters, none of them frozen."""
    import peft

    config = (
        peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=slots, num_frozen_tokens=0)
        if kind == "cartridge"
        else peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=slots, prefix_projection=False)
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for a property by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        wrapped: nn.Module = peft.get_peft_model(model, config)
    return wrapped.eval()


def parameters(peer: nn.Module) -> nn.Module:
    """The module that holds an adapter's virtual tokens."""
    encoders = peer.prompt_encoder
    assert isinstance(encoders, nn.ModuleDict)
    return encoders["default"]


def load(peer: nn.Module, states: States, n: int) -> None:
    """Make state `n` (all layers) the adapter's virtual tokens."""
    parameters(peer).load_prompt_embeddings(flattened(states, n))  # type: ignore[operator]


def flattened(states: States, n: int) -> Tensor:
    """[S, layers · 2 · kv heads · head size], as peft keeps it: of every layer keys, then values."""
    parts = [slots[layer][n] for layer in states.layers for slots in (states.keys, states.values)]
    return torch.stack(parts).permute(2, 0, 1, 3).flatten(1)


def _parts(group: Group, at_once: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    for start in range(0, len(group.places), at_once):
        cut = slice(start, start + at_once)
        yield group.places[cut], group.ids[cut], group.base[cut]


def _prompts(found: Sequence[Group]) -> int:
    return sum(len(group.places) for group in found)
