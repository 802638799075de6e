"""Models of a real architecture with random weights, for measurements that ask for shapes and not for knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def random_model(
    family: str, settings: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> PreTrainedModel:
    """A frozen model in evaluation mode; made where it will lie, so that a large one does not wait for the CPU.

    Args:
        family: `model_type` of the architecture.
        settings: what differs from the family's defaults.
    """
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.to(device).eval().requires_grad_(False)
