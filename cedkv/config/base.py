"""What every section of a configuration is: strict, frozen, without unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

T = TypeVar("T")

Listed = Annotated[tuple[T, ...], Strict(False)]
"""A YAML list, kept as a tuple; its items stay strict."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of something, 0 to 1."""

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Section(BaseModel):
    """A group of keys. The text under each key is its entry in the reference of keys."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def section(model: type[T]) -> Any:
    """A nested section that may be left out: all its defaults then."""
    make: Callable[[], T] = model
    return Field(default_factory=make)
