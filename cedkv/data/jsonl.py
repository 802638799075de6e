"""Documents, ON prompts and OFF prompts from JSONL files; configs/JSONL.md documents the schema.

Ids that a file leaves out are made from the row's content, so that reordering a file changes no prompt's id.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from cedkv.data.facts import FactError, explicit, locate
from cedkv.data.lines import Problems, Row, read_rows, shown, suggestion, text_fault, unique
from cedkv.data.records import Document, OffPrompt, OnPrompt, Role, Span, normalised
from cedkv.data.stress import content_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

EVAL_SHARE = 0.25
"""Share of a document's ON prompts without a split that go to evaluation, rounded up."""

DEFAULT_FAMILY = "off"


@dataclass(slots=True)
class OffFile:
    """The OFF prompts of a file: either all in ``unsplit``, or by the split each row states."""

    unsplit: list[OffPrompt] = field(default_factory=list)
    train: list[OffPrompt] = field(default_factory=list)
    stress: list[OffPrompt] = field(default_factory=list)
    sealed: list[OffPrompt] = field(default_factory=list)


def read_documents(path: Path) -> tuple[Document, ...]:
    """The documents of a file, in file order. ``UserError`` with file and line for every row that is wrong."""
    problems = Problems(path)
    documents: list[Document] = []
    ids: dict[Any, int] = {}
    for row in read_rows(path, problems):
        row.keys(required=("id", "text"), optional=("facts", "spans"))
        name, text = row.text("id"), row.text("text")
        if name:
            unique(row, f"document id {name!r}", name, ids)
        if row.ok:
            documents.append(Document(name, text, _spans(row, text)))
    problems.check()
    return tuple(documents)


def read_on(path: Path, documents: Collection[str], *, seed: int) -> tuple[OnPrompt, ...]:
    """The ON prompts of a file, in file order; ``documents`` are the known document ids.

    Of the rows without a ``split``, a quarter of each document's (rounded up) becomes evaluation, drawn by ``seed``
    from the prompts' content alone.
    """
    problems = Problems(path)
    rows: list[tuple[OnPrompt, bool]] = []
    ids: dict[Any, int] = {}
    prompts: dict[Any, int] = {}
    for row in read_rows(path, problems):
        row.keys(required=("document", "prompt", "answer"), optional=("id", "split"))
        document, prompt, answer = row.text("document"), row.text("prompt"), row.text("answer")
        split = row.choice("split", ("train", "eval"))
        name = row.text("id") or _content_id("on", document, prompt)
        if document and document not in documents:
            row.fail(f"'document' is {shown(document)}, no id of a document{suggestion(document, documents)}")
        if row.ok:
            unique(row, f"this prompt of document {document!r}", (document, normalised(prompt)), prompts)
        if row.ok:
            unique(row, f"id {name!r}", name, ids)
        stated = cast("Literal['train', 'eval']", split or "train")
        rows.append((OnPrompt(name, document, prompt, answer, stated), split is not None))
    problems.check()
    return _assign(rows, seed)


def read_off(path: Path) -> OffFile:
    """The OFF prompts of a file, in file order. Either every row states its ``split`` or none does."""
    problems = Problems(path)
    result = OffFile()
    ids: dict[Any, int] = {}
    prompts: dict[Any, int] = {}
    first: tuple[int, bool] | None = None
    for row in read_rows(path, problems):
        row.keys(required=("prompt",), optional=("id", "family", "split"))
        prompt, family = row.text("prompt"), row.text("family") or DEFAULT_FAMILY
        split = row.choice("split", ("train", "stress", "sealed"))
        first = first or (row.line, "split" in row.data)
        if ("split" in row.data) != first[1]:
            row.fail(
                f"line {first[0]} and this one differ in having a 'split'; give it in every row or in none"
            )
        if row.ok and split is not None:
            unique(row, "this prompt", normalised(prompt), prompts)
        repeats = split is None and _content_id("off", prompt) in ids and "id" not in row.data
        name = row.text("id") or _content_id("off", prompt)
        if row.ok and not repeats:  # the draw removes repeated prompts; they need no second id
            unique(row, f"id {name!r}", name, ids)
        if row.ok:
            pool: list[OffPrompt] = getattr(result, split or "unsplit")
            pool.append(OffPrompt(name, prompt, family))
    problems.check()
    return result


def _content_id(kind: str, *content: str) -> str:
    digest = hashlib.sha256("\n".join(map(normalised, content)).encode()).hexdigest()
    return f"{kind}-{digest[:16]}"


def _assign(rows: Iterable[tuple[OnPrompt, bool]], seed: int) -> tuple[OnPrompt, ...]:
    """Give every row that states no split one, document by document."""
    rows = list(rows)
    free: dict[str, list[OnPrompt]] = {}
    for prompt, stated in rows:
        if not stated:
            free.setdefault(prompt.document, []).append(prompt)
    chosen: set[str] = set()
    for prompts in free.values():
        order = sorted(prompts, key=lambda p: content_key(seed, f"{p.document}\n{normalised(p.prompt)}"))
        chosen.update(p.id for p in order[: math.ceil(EVAL_SHARE * len(order))])
    return tuple(
        OnPrompt(p.id, p.document, p.prompt, p.answer, "eval") if p.id in chosen else p for p, _ in rows
    )


def _spans(row: Row, text: str) -> tuple[Span, ...]:
    """The marked facts of a document row, from ``facts`` or ``spans``."""
    if "facts" in row.data and "spans" in row.data:
        row.fail("has both 'facts' and 'spans'; mark the facts in one way")
        return ()
    try:
        if "facts" in row.data:
            return locate(text, _items(row.data["facts"], "facts", _fact))
        return explicit(text, _items(row.data.get("spans", []), "spans", _span))
    except FactError as error:
        row.fail(str(error))
        return ()


def _items(value: object, key: str, read: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FactError(f"{key!r} is {shown(value)}; it must be a list of objects, or left out")
    return [read(item, f"{key}[{index}]") for index, item in enumerate(value)]


def _fact(item: object, where: str) -> tuple[str, str]:
    if not isinstance(item, dict) or set(item) != {"key", "value"}:
        raise FactError(f"{where} is {shown(item)}; a fact is an object with 'key' and 'value'")
    for name, part in item.items():
        fault = text_fault(part)
        if fault:
            raise FactError(f"{where}.{name} is {shown(part)}; {fault}")
    return item["key"], item["value"]


def _span(item: object, where: str) -> tuple[int, int, Role]:
    rule = "a span is an object with whole numbers 'start' and 'stop' and 'role' \"key\" or \"value\""
    if not isinstance(item, dict) or set(item) != {"start", "stop", "role"}:
        raise FactError(f"{where} is {shown(item)}; {rule}")
    start, stop, role = item["start"], item["stop"], item["role"]
    if type(start) is not int or type(stop) is not int or role not in ("key", "value"):
        raise FactError(f"{where} is {shown(item)}; {rule}")
    return start, stop, role
