"""Commands that use memories: export and look at them, generate with one, ask whether a model can have one."""

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

from cedkv.cli.judge import one_run, store, whole_id
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.api.beside import Said
    from cedkv.api.memory import Memory
    from cedkv.memory.export import StoredMemory
    from cedkv.models.load import LoadedModel

DIFFERENT, UNSUPPORTED = 10, 10
_SHADES = ((0.05, ""), (0.5, "\x1b[33m"), (float("inf"), "\x1b[31m"))
"""Colours of tokens by their KL in nats: up to the first limit none, then yellow, then red."""


def export(arguments: argparse.Namespace) -> int:
    """Write a run's memory to a folder; status 10 or 11, and no folder, where the gates do not pass it."""
    from cedkv.api.folder import NotPassedError
    from cedkv.api.folder import export as write
    from cedkv.release.exit_codes import of_status

    run_id = one_run(arguments)
    folder = Path(arguments.out or f"memory-{run_id[:8]}")
    try:
        verdict = write(run_id, store(arguments), folder, force=arguments.force)
    except NotPassedError as error:
        print(f"cedkv: {error}", file=sys.stderr)
        return of_status(error.status)
    print(f"{folder}  run {run_id[:8]}  Gate A {verdict.gates.gate_a}  Gate B {verdict.gates.gate_b}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a memory is, and with --state each of its slots."""
    from cedkv.api.inspection import facts, slots_of
    from cedkv.api.memory import stored_in
    from cedkv.report.tables import jsonable

    stored = stored_in(Path(arguments.folder))
    found = facts(stored)
    rows = slots_of(stored, _known(stored, arguments.state)) if arguments.state else None
    if arguments.format == "json":
        content = found | {"names": list(stored.documents)} | ({} if rows is None else {"state": rows})
        print(json.dumps(jsonable(content), indent=2))
        return 0
    for line in _facts(found) + (["", *_slots(rows)] if rows is not None else _names(stored)):
        print(line)
    return 0


def _known(stored: StoredMemory, state: str) -> str:
    from cedkv.api.memory import Memory

    Memory(stored.states, stored.documents, stored.origin).group(state)
    return state


def _facts(found: dict[str, Any]) -> list[str]:
    from cedkv.report.tables import aligned, shown

    flat: dict[str, Any] = {}
    for name, value in found.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {key}".strip(): item for key, item in items}
    rows = [[name, shown(_said(value))] for name, value in flat.items()]
    return aligned(rows, (False, False))


def _said(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, float | str) else str(value)


def _names(stored: StoredMemory) -> list[str]:
    from cedkv.report import escape

    names = [escape.plain(name, 40) for name in stored.documents[:12]]
    more = len(stored.documents) - len(names)
    return [
        "",
        f"states  {', '.join(names)}{f' and {more} more' if more > 0 else ''}",
        "one of them, slot by slot: --state NAME",
    ]


def _slots(rows: list[dict[str, Any]]) -> list[str]:
    from cedkv.report.tables import aligned

    table = [["slot", "anchor", "mass by atom type", "candidates, position:weight"]]
    for row in rows:
        mass = "  ".join(f"{kind} {share:.2f}" for kind, share in row["mass"].items())
        best = "  ".join(f"{one['position']}:{one['weight']:.2f}" for one in row["candidates"])
        table.append([str(row["slot"]), str(row["anchor"]), mass, best])
    return aligned(table, (True, True, False, False))


def diff(arguments: argparse.Namespace) -> int:
    """Say in what two memories differ; status 10 where they do."""
    from cedkv.api.inspection import differences
    from cedkv.api.memory import stored_in
    from cedkv.report import escape

    found = differences(stored_in(Path(arguments.folder)), stored_in(Path(arguments.other)))
    for line in found:
        print(escape.plain(line))
    if not found:
        print("the two inject the same")
    return DIFFERENT if found else 0


def verify(arguments: argparse.Namespace) -> int:
    """Check a memory's folder; with --model that it is that model's, with --log that it is what its run logged."""
    from cedkv.api.memory import Memory, stored_in

    stored = stored_in(Path(arguments.folder))
    memory = Memory.load(arguments.folder)
    print(f"readable, of format {stored.meta['format']}; hash, shapes and numbers agree")
    if arguments.model is not None:
        loaded = _model(arguments, memory)
        memory.check(loaded.model, loaded.tokenizer)
        known = (
            "weights, settings and tokenizer" if memory.origin.tokenizer_sha256 else "weights and settings"
        )
        print(f"made for {arguments.model!r}: {known} agree")
    if arguments.log:
        from cedkv.api.folder import check_logged

        verdict = check_logged(stored, store(arguments))
        print(
            f"run {verdict.gates.run_id[:8]} logged it; its log says Gate A {verdict.gates.gate_a}, Gate B {verdict.gates.gate_b}"
        )
    return 0


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
        return _Source(memory, _state(arguments, memory), text, partial(_model, arguments, memory))
    from cedkv.tracking.reader import read_run
    from cedkv.train.logged import config_of, corpus_of, memory_of, model_of

    record = read_run(whole_id(arguments, named), store(arguments))
    stored = memory_of(record, store(arguments))
    memory = Memory(stored.states, stored.documents, stored.origin)
    state, config = _state(arguments, memory), config_of(record)
    if text is None:
        documents = {document.id: document.text for document in corpus_of(record, config).documents}
        text = documents[state[0]] if len(state) == 1 else None
    load = partial(_model, arguments, memory) if arguments.model else partial(model_of, record, config)
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


def _model(arguments: argparse.Namespace, memory: Memory) -> LoadedModel:
    from cedkv.models.load import load_model

    named = arguments.model or memory.origin.model
    if not named:
        raise UserError("the memory does not say which model it was made for: name it with --model")
    return load_model(named, dtype=memory.origin.dtype or "float32", device=arguments.device)


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
