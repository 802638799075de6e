"""Load a frozen causal LM and its tokenizer, and give them a fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cedkv.core.errors import UserError
from cedkv.models.families import refuse_unrouted, refuse_without_attention
from cedkv.models.identity import fingerprint
from cedkv.models.quiet import quiet
from cedkv.models.tiny import EMBEDDED


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in evaluation mode, its tokenizer and the hash of its configuration and weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def context_length(self) -> int:
        """Tokens the model was made for; no bound where its configuration names none."""
        return context_length(self.model.config)


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """The tokenizer of a model whose weights are not loaded, and the tokens that the model was made for."""

    tokenizer: PreTrainedTokenizerFast
    context_length: int


def context_length(config: PreTrainedConfig) -> int:
    """Tokens a model of this configuration was made for; no bound where it names none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 2**31))


def kept_to_cpu(env: Mapping[str, str]) -> bool:
    """Whether accelerate was told to use CPUs only (``use_cpu: true`` in a file of its own)."""
    return env.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes", "on", "y", "t"}


def pick_device(device: str) -> str:
    """`auto` means the GPU where there is one, and accelerate was not told to leave it alone."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() and not kept_to_cpu(os.environ) else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"model.device is {device!r}, but this torch sees no CUDA device: use 'cpu' or 'auto'"
        )
    return device


def load_model(
    name_or_path: str, *, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load `name_or_path` (`embedded`, a folder or a hub name) from safetensors, frozen.

    Raises:
        UserError: nothing loadable there, or a family that slots cannot reach.
    """
    where = pick_device(device)
    model, tokenizer, random = _found(
        name_or_path, partial(_read, dtype=getattr(torch, dtype)), trust_remote_code
    )
    refuse_without_attention(model)
    if random:
        raise UserError(
            f"model.name_or_path {name_or_path!r} has no weights of the right shape for {len(random)} parameters "
            f"({random[0]!r} first), which would be random: give the complete checkpoint of a causal LM with its own config.json"
        )
    model.to(where).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, fingerprint(model))


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> LoadedTokenizer:
    """The tokenizer of a model and its context, without its weights. Raises as `load_model` does."""
    config, tokenizer = _found(name_or_path, _read_tokenizer, trust_remote_code)
    return LoadedTokenizer(tokenizer, context_length(config))


def _found(
    name_or_path: str, read: Callable[..., tuple[Any, ...]], trust_remote_code: bool
) -> tuple[Any, ...]:
    """What ``read`` finds there, the tokenizer second; what keeps it from reading is a mistake of the user's."""
    source = str(EMBEDDED) if name_or_path == "embedded" else name_or_path
    try:
        with quiet():
            found = read(source, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError) as error:
        said = str(error.__cause__ if isinstance(error, StrictDataclassError) else error).strip()
        reason = (said or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name_or_path {name_or_path!r} cannot be loaded ({reason}): give 'embedded', a folder with config.json, "
            "model.safetensors and tokenizer.json, or the name of a cached hub model"
        ) from error
    if not isinstance(found[1], PreTrainedTokenizerFast):
        raise UserError(
            f"model {name_or_path!r} has no fast tokenizer (tokenizer.json): atom types need character offsets"
        )
    return found


def _read_tokenizer(source: str, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model of a family that slots can reach."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    refuse_unrouted(config)
    return config, AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def _read(source: str, *, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and the parameters for which the checkpoint has no (fitting) weights."""
    config, tokenizer = _read_tokenizer(source, trust_remote_code=trust_remote_code)
    # sdpa cannot apply Gemma 2's soft cap on logits; else transformers takes sdpa where the family has it.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        attn_implementation="eager" if capped else None,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused, in our words
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    model, report = loaded
    wrong_shape = {key[0] for key in report["mismatched_keys"]}
    return model, tokenizer, sorted({*report["missing_keys"], *wrong_shape})
