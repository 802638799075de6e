"""Injection: slots in the attention of a frozen model, and what the model's attention tells about a document."""

from cedkv.injection.attention import inject, observe
from cedkv.injection.calls import AttentionCall
from cedkv.injection.capture import attention_to, capture, positions_behind
from cedkv.injection.probe import check_routed

__all__ = [
    "AttentionCall",
    "attention_to",
    "capture",
    "check_routed",
    "inject",
    "observe",
    "positions_behind",
]
