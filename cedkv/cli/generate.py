"""Commands that try memories on a model: continue a prompt with one, ask whether a model can have one."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cedkv.cli import shared
from cedkv.cli.judge import store, whole_id
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.api.beside import Said
    from cedkv.api.memory import Memory
    from cedkv.models.load import LoadedModel

UNSUPPORTED = 10
"""Status of `cedkv doctor` where something does not hold."""

_SHADES = ((0.05, ""), (0.5, "\x1b[33m"), (float("inf"), "\x1b[31m"))
"""Colours of tokens by their KL in nats: up to the first limit none, then yellow, then red."""


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``cedkv generate``."""
    parser.add_argument("memory", metavar="MEMORY", help="an exported memory, or the id of a run")
    parser.add_argument("prompt", metavar="PROMPT", help="what is continued")
    parser.add_argument(
        "--state",
        metavar="NAME",
        action="append",
        default=[],
        help="the document whose slots are attached; again for several",
    )
    parser.add_argument(
        "--document",
        metavar="FILE",
        help="its text, for the way with the document in front; of a run it is known",
    )
    shared.model(parser, "default: the one it was made for")
    parser.add_argument("--tokens", metavar="N", type=shared.count, default=32, help="at most (%(default)s)")
    parser.add_argument(
        "--temperature", metavar="T", type=shared.temperature, default=0.0, help="0: greedy (%(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")
    shared.store(parser)


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``cedkv doctor``."""
    parser.add_argument("model", metavar="MODEL", help="folder, hub name or 'embedded'")
    parser.add_argument(
        "--layers",
        metavar="SCOPE",
        default="top25",
        help="where slots go: topNN, all or full_attention (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(%(default)s)"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")


def generate(arguments: argparse.Namespace) -> int:
    """Continue a prompt by the bare model, with the memory, and with the document in front."""
    from cedkv.api.beside import Sampling, side_by_side
    from cedkv.report.tables import jsonable

    source = _source(arguments)
    sampling = Sampling(arguments.tokens, arguments.temperature, arguments.seed)
    said = side_by_side(
        source.memory,
        source.load(),
        source.state,
        arguments.prompt,
        document=source.document,
        sampling=sampling,
    )
    if arguments.format == "json":
        rows = [
            {"way": one.name, "text": one.text, "tokens": one.tokens, "kl": one.kl, "kl_of": one.kl_of}
            for one in said
        ]
        print(json.dumps(jsonable(rows), indent=2))
        return 0
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in said:
        print(_line(one, coloured))
    print(
        "\nKL in nats at each token"
        + (": over 0.05 yellow, over 0.5 red" if coloured else "; --format json has every token's")
    )
    return 0


def _line(one: Said, coloured: bool) -> str:
    """A continuation on one line, with what its divergences come to."""
    from cedkv.report import escape

    parts = []
    for n, token in enumerate(one.tokens):
        shade = next(code for limit, code in _SHADES if (one.kl[n] if one.kl else 0.0) <= limit)
        plain = escape.plain(token, None)
        parts.append(f"{shade}{plain}\x1b[0m" if coloured and shade else plain)
    told = f"\n{'':14}{one.kl_of}: first token {one.kl[0]:.3g}, largest {max(one.kl):.3g}" if one.kl else ""
    return f"{one.name:14}{''.join(parts)}{told}"


@dataclass(frozen=True)
class _Source:
    """A memory, which of its states is meant, the text that stands behind it where it is known, and how its model is loaded."""

    memory: Memory
    state: tuple[str, ...]
    document: str | None
    load: Callable[[], LoadedModel]


def _source(arguments: argparse.Namespace) -> _Source:
    """What `generate` was asked for: the memory of a folder, or of a run, whose documents are known."""
    from cedkv.api.memory import Memory

    text = None if arguments.document is None else _text(Path(arguments.document))
    named = str(arguments.memory)
    if Path(named).exists() or not re.fullmatch("[0-9a-f]{6,32}", named):
        memory = Memory.load(named)
        return _Source(memory, _state(arguments, memory), text, partial(model_for, arguments, memory))
    from cedkv.tracking.reader import read_run
    from cedkv.train.logged import config_of, corpus_of, memory_of, model_of

    record = read_run(whole_id(arguments, named), store(arguments))
    stored = memory_of(record, store(arguments))
    memory = Memory(stored.states, stored.documents, stored.origin)
    state, config = _state(arguments, memory), config_of(record)
    if text is None:
        documents = {document.id: document.text for document in corpus_of(record, config).documents}
        text = documents[state[0]] if len(state) == 1 else None
    load = partial(model_for, arguments, memory) if arguments.model else partial(model_of, record, config)
    return _Source(memory, state, text, load)


def _state(arguments: argparse.Namespace, memory: Memory) -> tuple[str, ...]:
    """The states that were named, or the only one there is."""
    if not arguments.state and len(memory.documents) > 1:
        raise UserError(
            f"the memory is of {len(memory.documents)} documents, {memory.documents[0]!r} and others: name one with --state "
            "(cedkv memory inspect lists them)"
        )
    state = tuple(arguments.state) or memory.documents
    memory.group(state)
    return state


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--document {str(file)!r} cannot be read as UTF-8 text ({error}); name a text file"
        ) from error


def doctor(arguments: argparse.Namespace) -> int:
    """Say whether memories work in a model, and what they cost there; status 10 where something does not hold."""
    from cedkv.api.doctor import diagnose
    from cedkv.config.scope import parse_scope
    from cedkv.models.load import load_model
    from cedkv.report.tables import aligned, jsonable

    try:
        scope = parse_scope(arguments.layers)
    except ValueError as error:
        raise UserError(f"--layers {arguments.layers!r} {error}") from None
    found = diagnose(load_model(arguments.model, dtype=arguments.dtype, device=arguments.device), str(scope))
    if arguments.format == "json":
        print(json.dumps(jsonable({"supported": found.supported, **asdict(found)}), indent=2))
        return 0 if found.supported else UNSUPPORTED
    facts = [[name, _number(value)] for name, value in found.facts.items()]
    findings = [["yes" if one.holds else "NO", one.name, one.told] for one in found.findings]
    costs = [[name, _number(value)] for name, value in found.costs.items()]
    for rows, right in ((facts, (False, False)), (findings, (False, False, False)), (costs, (False, True))):
        print("\n".join(aligned(rows, right)), end="\n\n")
    print(
        "supported" if found.supported else "not supported: what does not hold would make its numbers wrong"
    )
    return 0 if found.supported else UNSUPPORTED


def _number(value: Any) -> str:
    from cedkv.report import escape

    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else escape.plain(str(value), 64)


def model_for(arguments: argparse.Namespace, memory: Memory) -> LoadedModel:
    """The model that was named, else the one that a memory was made for."""
    from cedkv.models.load import load_model

    named = arguments.model or memory.origin.model
    if not named:
        raise UserError("the memory does not say which model it was made for: name it with --model")
    return load_model(named, dtype=memory.origin.dtype or "float32", device=arguments.device)
