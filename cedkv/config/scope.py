"""Layer scopes: which attention layers a memory mixes in and is injected into.

A scope is ``all``, ``full_attention`` (the layers without a sliding window), ``topNN`` (the last ``ceil(NN/100 · n)`` of
``n`` attention layers) or an explicit list of attention-layer numbers, counted from 0 at the bottom.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from cedkv.config.base import Listed

_TOP = re.compile(r"top([1-9][0-9]?|100)")
_RULE = "give all, full_attention, topNN (top1 to top100) or a list of layer numbers such as [6, 7]"


def parse_scope(value: Any) -> str | tuple[int, ...]:
    """``value`` as a scope, a list as a sorted tuple; ``ValueError`` with the rule if it is none."""
    if isinstance(value, str):
        if value in {"all", "full_attention"} or _TOP.fullmatch(value):
            return value
        raise ValueError(f"is not a layer scope; {_RULE}")
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"is not a layer scope; {_RULE}")
    if any(type(layer) is not int or layer < 0 for layer in value):
        raise ValueError("holds something that is no layer number; layers are whole numbers from 0 up")
    if len(set(value)) != len(value):
        raise ValueError("names a layer twice; name each layer once")
    return tuple(sorted(value))


Scope = Annotated[
    str | Listed[int],
    BeforeValidator(parse_scope),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(all|full_attention|top([1-9][0-9]?|100))$"},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": 1,
                    "uniqueItems": True,
                },
            ]
        }
    ),
]


def top_percent(scope: str | tuple[int, ...]) -> int | None:
    """The percentage a scope takes from the top (``all`` is 100), or None where it is not of that kind."""
    if scope == "all":
        return 100
    match = _TOP.fullmatch(scope) if isinstance(scope, str) else None
    return int(match[1]) if match else None


def surely_outside(mixture: str | tuple[int, ...], injection: str | tuple[int, ...]) -> bool:
    """Whether ``mixture`` asks for layers beyond ``injection`` whatever the model; the rest is checked against it."""
    if isinstance(mixture, tuple) and isinstance(injection, tuple):
        return not set(mixture) <= set(injection)
    wide, narrow = top_percent(mixture), top_percent(injection)
    return wide is not None and narrow is not None and wide > narrow
