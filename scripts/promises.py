"""Four promises that injection keeps with a model family, and the trial of one.

Families are made small and with random weights (see `miniatures`).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from miniatures import FAMILIES, VOCABULARY, configuration, miniature
from torch import Tensor
from transformers import PreTrainedModel

from cedkv.injection import capture, check_routed, inject, positions_behind
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.models.families import UnreachableError, refuse_unrouted
from cedkv.models.layers import attention_modules, decoder_of

IMPLEMENTATIONS = ("sdpa", "eager")
DOCUMENT, PROMPT, SLOTS, NEW = 20, 9, 3, 6


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids without special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def log_probs(model: PreTrainedModel, ids: Tensor, **inputs: Any) -> Tensor:
    """Of every position, [B, T, V]."""
    found: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return found.log_softmax(-1)


def memory(model: PreTrainedModel) -> States:
    """A few slots out of a document, at every layer that attends."""
    atoms = _captured(model, tokens(DOCUMENT, seed=3))
    pick = torch.randperm(DOCUMENT, generator=torch.Generator().manual_seed(0))[:SLOTS]
    keys = {layer: key[None, :, pick] for layer, key in atoms.keys.items()}
    return States(keys, {layer: value[None, :, pick] for layer, value in atoms.values.items()})


def an_empty_memory_changes_nothing(model: PreTrainedModel) -> None:
    """Bitwise, in rows that are padded on the left, too; a memory that is not empty does change the logits."""
    ids, slots = tokens(3, PROMPT), memory(model)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for inputs in ({}, {"attention_mask": mask}):
        bare = log_probs(model, ids, **inputs)
        with inject(model, slots):
            assert (log_probs(model, ids, **inputs) - bare).abs().max() > 1e-3
        for nothing in (slots.empty(), None):
            with inject(model, nothing):
                assert torch.equal(log_probs(model, ids, **inputs), bare)
        assert torch.equal(log_probs(model, ids, **inputs), bare)


def a_document_injected_whole_is_the_document_read(model: PreTrainedModel) -> None:
    """Within what rounding makes of it, while the document makes a difference."""
    document, prompt = tokens(DOCUMENT, seed=1), tokens(1, PROMPT, seed=2)
    read = log_probs(model, torch.cat([document[None], prompt], dim=1))[:, DOCUMENT:]
    whole = _captured(model, document).as_states()
    with inject(model, whole):
        injected = log_probs(model, prompt, position_ids=positions_behind(model, whole, PROMPT))
    assert (read - log_probs(model, prompt)).abs().max() > 0.1
    assert (read - injected).abs().max() <= 1e-4


def training_moves_the_memory_alone(model: PreTrainedModel) -> None:
    """A step of Adam: every slot of every head gets a gradient, no weight does or moves."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slots = memory(model)
    trained = [*slots.keys.values(), *slots.values.values()]
    optimiser = torch.optim.Adam([x.requires_grad_() for x in trained], lr=0.01)
    with inject(model, slots):
        log_probs(model, tokens(2, PROMPT))[..., 5].sum().backward()
    assert all((x.grad.abs().amax(-1) > 0).all() for x in trained if x.grad is not None)
    assert all(x.grad is not None for x in trained)
    optimiser.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def generation_needs_no_cache(model: PreTrainedModel) -> None:
    """Greedy tokens with a cache, without one, and from whole passes are the same."""
    ids, slots = tokens(2, PROMPT), memory(model)
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = ids
    with torch.no_grad(), inject(model, slots):
        for _ in range(NEW):
            wanted = torch.cat([wanted, log_probs(model, wanted)[:, -1:].argmax(-1)], dim=1)
        for cache in (True, False):
            assert torch.equal(model.generate(ids, use_cache=cache, **settings), wanted)


PROMISES = (
    an_empty_memory_changes_nothing,
    a_document_injected_whole_is_the_document_read,
    training_moves_the_memory_alone,
    generation_needs_no_cache,
)


def _captured(model: PreTrainedModel, document: Tensor) -> Atoms:
    return capture(model, "d", tuple(document.tolist()), ("content",) * len(document))


# ---- trying a family ------------------------------------------------------------------------------------------------
def refusal(family: str) -> str | None:
    """Why cedkv refuses the family, or transformers does not make it; None where slots are taken."""
    try:
        refuse_unrouted(configuration(family))
        model = miniature(family)
    except UnreachableError as error:
        return error.reason
    except ImportError as error:
        needed = re.search(r"pip install ([\w-]+)", str(error))
        return f"needs a package that is not installed here ({needed[1] if needed else error})"
    except (AttributeError, ValueError, StrictDataclassError):
        return "is not made by AutoModelForCausalLM of its own default configuration"
    try:
        check_routed(model, tuple(layer.index for layer in attention_modules(model).values()))
    except UnreachableError as error:
        return error.reason
    return None


def offered(family: str) -> list[str]:
    """The attention implementations, of those that can carry slots, that transformers offers for the family."""
    found = []
    for implementation in IMPLEMENTATIONS:
        try:
            decoder_of(miniature(family)).set_attn_implementation(implementation)
        except ValueError:
            continue
        found.append(implementation)
    return found


def tried(family: str) -> dict[str, Any]:
    """The row of a family. A family that is taken and breaks a promise is a mistake of ours: `AssertionError`."""
    refused = refusal(family)
    if refused is not None:
        return {"class": FAMILIES[family], "layers": _listed(family), "attention": [], "refused": refused}
    implementations = offered(family)
    for implementation in implementations:
        model = miniature(family)
        decoder_of(model).set_attn_implementation(implementation)
        for promise in PROMISES:
            promise(model)
    layers = _attending(miniature(family))
    return {"class": FAMILIES[family], "layers": layers, "attention": implementations, "refused": None}


def _attending(model: PreTrainedModel) -> str:
    """What kinds of layers attend, in the order in which they first come."""
    kinds = (
        "sliding" if layer.window is not None else "chunked" if layer.chunk is not None else "global"
        for layer in attention_modules(model).values()
    )
    return " + ".join(dict.fromkeys(kinds))


def _listed(family: str) -> str:
    """What kinds of layers the configuration of a family that is not taken lists, if it does."""
    try:
        listed = getattr(configuration(family).get_text_config(), "layer_types", None) or ()
    except (ValueError, StrictDataclassError):
        return ""
    kinds = (kind.removesuffix("_attention").replace("full", "global").replace("_", " ") for kind in listed)
    return " + ".join(dict.fromkeys(kinds))
