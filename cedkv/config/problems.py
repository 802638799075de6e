"""From pydantic's errors to sentences: the key, its value, the rule it breaks and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cedkv.config.reference import keys, shown
from cedkv.config.rules import BrokenRulesError, Problem
from cedkv.core.errors import UserError

_NO_VALUE: Final = object()
_UNION_TAGS: Final = frozenset({"generated", "jsonl"})
_FOLLOWS_ANOTHER: Final = "default_factory_not_called"
_SECTION_TYPES: Final = frozenset({"model_type", "dict_type", "model_attributes_type"})

RULES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "int_type": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be text (in quotes where it looks like a number)",
    "tuple_type": lambda _: "must be a list, e.g. [a, b]",
    "finite_number": lambda _: "must be a finite number",
    "string_unicode": lambda _: "must be Unicode text, without lone surrogates",
    "string_too_short": lambda _: "must not be empty",
    "string_pattern_mismatch": lambda c: f"must match {c['pattern']}",
    "too_short": lambda c: f"must have at least {c['min_length']} item(s)",
    "greater_than": lambda c: f"must be > {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be ≥ {c['ge']:g}",
    "less_than": lambda c: f"must be < {c['lt']:g}",
    "less_than_equal": lambda c: f"must be ≤ {c['le']:g}",
    "literal_error": lambda c: f"must be {c['expected']}",
    "union_tag_invalid": lambda c: f"must be one of {c['expected_tags']}",
}
"""What pydantic's kinds of errors mean, in our words."""


def problems_of(error: ValidationError) -> list[Problem]:
    """Every mistake in ``error``, each once, in the order of the schema."""
    details = error.errors(include_url=False)
    spoiled = {tuple(d["loc"][:-1]) for d in details if d["loc"] and isinstance(d["loc"][-1], int)}
    found: list[Problem] = []
    for detail in details:
        if detail["type"] == _FOLLOWS_ANOTHER:
            continue  # the key it follows is reported
        if detail["type"] == "too_short" and tuple(detail["loc"]) in spoiled:
            continue  # only because its items were refused
        found += _explain(detail)
    return found


def user_error(origin: str, problems: Sequence[Problem], notes: Sequence[str] = ()) -> UserError:
    """All problems of the configuration ``origin`` as one error; several become a list, then the ``notes``."""
    lines = [_sentence(problem) for problem in problems]
    several = "\n  - ".join([f"{origin} has {len(lines)} problems:", *lines])
    message = several if len(lines) > 1 else f"{origin}: {lines[0]}"
    return UserError("\n  note: ".join([message, *notes]))


def no_value(key: str, message: str) -> Problem:
    """A problem with a key itself, where the value does not matter."""
    return Problem(key, _NO_VALUE, message)


def _sentence(problem: Problem) -> str:
    if problem.value is _NO_VALUE:
        return f"{problem.key}: {problem.message}"
    text = shown(problem.value)
    return f"{problem.key} = {text if len(text) <= 80 else text[:77] + '...'}: {problem.message}"


def _explain(detail: ErrorDetails) -> list[Problem]:
    kind, context = detail["type"], detail.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, BrokenRulesError):
        return cause.problems
    path = _path(detail["loc"])
    if kind == "extra_forbidden":
        return [no_value(path, _unknown(path))]
    if kind == "missing":
        return [no_value(path, f"is missing; add it: {_meaning(path)}")]
    if kind == "union_tag_invalid":
        path, detail["input"] = f"{path}.source", detail["input"]["source"]
    if kind in _SECTION_TYPES:
        inside = ", ".join(_children(path))
        return [Problem(path, detail["input"], f"is a group of keys ({inside}); fill it or leave it out")]
    rule = RULES[kind](context) if kind in RULES else str(cause or detail["msg"])
    return [Problem(path, detail["input"], rule + _remedy(path))]


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for at, part in enumerate(loc):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not (at == 1 and loc[0] == "data" and part in _UNION_TAGS and len(loc) > 2):
            text += f".{part}" if text else part
    return text


def _remedy(path: str) -> str:
    plain = path.partition("[")[0]
    default = next((key.default for key in keys() if key.path == plain), None)
    return "" if default is None else f"; the default is {default}"


def _meaning(path: str) -> str:
    return next((key.meaning for key in keys() if key.path == path), "it has no default")


def _children(path: str) -> list[str]:
    prefix = f"{path}." if path else ""
    inside = (key.path[len(prefix) :].partition(".")[0] for key in keys() if key.path.startswith(prefix))
    return list(dict.fromkeys(inside))


def _unknown(path: str) -> str:
    """What was probably meant: a neighbour by spelling, else the same name elsewhere."""
    if path in _all_paths():
        return "does not go with the chosen data.source; drop it or change the source"
    parent, _, name = path.rpartition(".")
    near = difflib.get_close_matches(name, _children(parent), n=1)
    if near:
        return f"unknown key; did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    elsewhere = [known for known in _all_paths() if known.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown key; did you mean {' or '.join(elsewhere[:3])}?"
    return f"unknown key; known here: {', '.join(_children(parent))}"


def _all_paths() -> list[str]:
    """Paths of all keys and of all groups of keys."""
    paths: dict[str, None] = {}
    for key in keys():
        parts = key.path.split(".")
        paths.update(dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1)))
    return list(paths)
