"""The two transformers types everything above this room speaks of."""

from __future__ import annotations

from transformers import PreTrainedModel as CausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

__all__ = ["CausalLM", "Tokenizer"]
