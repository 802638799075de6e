"""YAML as configurations use it: the JSON-like core of YAML 1.2, read strictly.

PyYAML follows YAML 1.1, where the keys ``on:`` and ``off:`` turn into ``True`` and ``False`` and ``1e-3`` is text. Here
only ``true`` and ``false`` are booleans, numbers follow the 1.2 core schema, and everything else is text. Refused, each
with its line: tags, duplicate keys, keys that are not text, several documents, recursive anchors, oversized files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cedkv.core.errors import UserError

MAX_BYTES: Final = 256 * 1024
MAX_VALUES: Final = 20_000
"""Values after anchors are expanded: a few nested anchors can otherwise stand for billions."""

_NULL, _BOOL, _INT, _FLOAT, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge")
)
_SCALARS: Final = (
    (_NULL, r"(?:~|null|Null|NULL|)", "~nN"),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    (_INT, r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        _FLOAT,
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+0123456789.",
    ),
    (_MERGE, r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """Parses only; the resolvers of YAML 1.1 are replaced and its constructors never called."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own protocol

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            message = f"the tag '{shown}'; tags are not allowed here: write the plain value"
            raise ComposerError(None, None, message, event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 *or* 1.2 would not read back as text, so any reader gets the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's own protocol
        return True


for _tag, _pattern, _first in _SCALARS:
    _starts = [*_first, ""] if _tag == _NULL else list(_first)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"\A{_pattern}\Z"), _starts)


def _text(dumper: _Dumper, text: str) -> ScalarNode:
    # PyYAML writes these line breaks unescaped outside double quotes, and reads them back as spaces.
    style = '"' if any(char in text for char in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)

# libyaml reads a logged configuration ten times faster than PyYAML's own parser, but gives a tag no different from a
# resolved one and takes some texts that the other does not. It gets the plain block style that `dump` writes, in which
# nothing can be meant but keys, words and numbers.
_PlainLoader = (
    type("_PlainLoader", (yaml.CSafeLoader,), {"yaml_implicit_resolvers": _Loader.yaml_implicit_resolvers})
    if yaml.__with_libyaml__
    else _Loader
)
_WORD = r"-?[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*"
_SCALAR = rf"(?:{_WORD}(?: {_WORD})*|'[A-Za-z0-9_/.+ -]*')"
_PLAIN = re.compile(
    rf"(?:(?:  ){{0,20}}(?:(?:[A-Za-z_][A-Za-z0-9_]*|'[A-Za-z0-9_]+'):(?: {_SCALAR})?|- {_SCALAR})\n)+"
)


def read(path: Path) -> dict[str, Any]:
    """The mapping in the file ``path``; ``UserError`` if it cannot be read as one."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"{path} has {size} bytes; a configuration has at most {MAX_BYTES}: is this the right file?"
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; give the path of a configuration, e.g. configs/smoke.yaml"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise UserError(f"{path} holds {found}; a configuration is a mapping, e.g. 'phase3: {{}}'")
    return value


def parse(text: str, origin: str) -> Any:
    """The one value ``text`` stands for: dict, list, str, int, float, bool or None. ``origin`` names it in errors."""
    if len(text) <= MAX_BYTES and _PLAIN.fullmatch(text):
        with suppress(yaml.YAMLError, UserError):  # refused again below, with the one wording
            return _build(text, origin, _PlainLoader)
    return _parse_any(text, origin)


def _parse_any(text: str, origin: str) -> Any:
    try:
        return _build(text, origin, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: cannot be read: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{origin}: nested too deeply; a configuration has a handful of levels") from None


def _build(text: str, origin: str, loader: Any) -> Any:
    node = yaml.compose(text, Loader=loader)
    return None if node is None else _Builder(origin).build(node)


def dump(value: Any) -> str:
    """``value`` as block-style YAML, keys in their order; ``parse`` reads the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Builder:
    """Turns a parsed tree into plain values, refusing what a configuration must not hold."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.values = 0
        self.open: set[int] = set()

    def build(self, node: Node) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._error(
                node, f"more than {MAX_VALUES} values; a configuration is small: expand fewer anchors"
            )
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        assert isinstance(node, SequenceNode | MappingNode)
        if id(node) in self.open:
            raise self._error(node, "an anchor that contains itself; write the value out")
        self.open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item) for item in node.value]
            return self._mapping(node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for base in self._merge_sources(value_node):
                    merged = {**base, **merged}
                continue
            key = self._key(key_node)
            if key in own:
                raise self._error(key_node, f"the key {key!r} stands twice in one mapping; keep one")
            own[key] = self.build(value_node)
        return {**merged, **own}

    def _merge_sources(self, node: Node) -> Iterator[dict[str, Any]]:
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.build(source)
            if not isinstance(value, dict):
                raise self._error(source, "'<<' merges mappings only; point it at a mapping's anchor")
            yield value

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._error(node, "a list or mapping as a key; keys are words")
        key = self._scalar(node)
        if not isinstance(key, str):
            raise self._error(
                node, f"the key {node.value!r} is read as {type(key).__name__}; keys are words: quote it"
            )
        return key

    def _scalar(self, node: ScalarNode) -> Any:
        text = str(node.value)
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        if node.tag == _INT:
            return self._integer(node, text)
        if node.tag == _FLOAT:
            return float(text.replace(".", "") if text[-1] in "fFnN" else text)
        return text

    def _integer(self, node: ScalarNode, text: str) -> int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return int(text, base)
        except ValueError:
            raise self._error(node, f"a number of {len(text)} digits; write a smaller one") from None

    def _error(self, node: Node, message: str) -> UserError:
        mark = node.start_mark
        return UserError(f"{self.origin}, line {mark.line + 1}, column {mark.column + 1}: {message}")
