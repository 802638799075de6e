from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cedkv.config import dump_yaml, load_config, yaml12
from cedkv.core.errors import UserError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["on", "off", "yes", "no", "null", "~", "1e-3", "0o17", "0x1F", "1_000", "2024-01-01", "12:30", "<<", "=", ".5", "-"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert yaml12.parse(f"key: {text}", "here") == {"key": value}


def test_nan_is_read_as_a_number() -> None:
    assert math.isnan(yaml12.parse(".nan", "here"))


def test_on_and_off_stay_keys() -> None:
    assert yaml12.parse("on: 1\noff: {yes: no}", "here") == {"on": 1, "off": {"yes": "no"}}


def test_anchors_and_merges() -> None:
    text = "base: &base {a: 1, b: 2}\nfirst:\n  <<: *base\n  b: 3\nsecond: {<<: [*base, {a: 9, c: 4}]}"
    read = yaml12.parse(text, "here")
    assert read["first"] == {"a": 1, "b": 3}
    assert read["second"] == {"a": 1, "b": 2, "c": 4}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [id]", 2, "tags are not allowed"),
        ("a: !!str 5", 1, "'!!str'"),
        ("a: !custom {b: 1}", 1, "'!custom'"),
        ("a: ! 5", 1, "'!'"),
        ("!!map {a: 1}", 1, "'!!map'"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' stands twice"),
        ("a:\n  - {b: 1, b: 1}", 2, "the key 'b' stands twice"),
        ("1: x", 1, "the key '1' is read as int"),
        ("true: x", 1, "the key 'true' is read as bool"),
        ("? [a]\n: 1", 1, "a list or mapping as a key"),
        ("a: &a [1, *a]", 1, "contains itself"),
        ("a: *nowhere", 1, "undefined alias"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("a: 1\n---\nb: 2", 2, "single document"),
        ("a: [1", 1, "expected ',' or ']'"),
        ("\ta: 1", 1, "cannot start any token"),
        ("<<: 5", 1, "merges mappings only"),
        (f"a: {'9' * 5000}", 1, "a number of 5000 digits"),
    ],
)
def test_what_a_configuration_must_not_hold_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(UserError, match=rf"^run\.yaml, line {line}, column \d+: ") as error:
        yaml12.parse(text, "run.yaml")
    assert says in str(error.value)


def test_anchors_cannot_stand_for_billions_of_values() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]"
        for below, name in zip("abcdefg", "bcdefgh", strict=True)
    ]
    with pytest.raises(UserError, match=f"more than {yaml12.MAX_VALUES} values"):
        yaml12.parse("\n".join(lines), "run.yaml")


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        yaml12.parse(text, "run.yaml")


def test_control_characters_are_refused() -> None:
    with pytest.raises(UserError, match=r"run\.yaml: cannot be read: .*special characters"):
        yaml12.parse("a: \x00", "run.yaml")


@given(VALUES)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert yaml12.parse(yaml12.dump(value), "here") == value


@given(st.dictionaries(st.text(), SCALARS, max_size=4))
@example({"\x85": "a\u2028b\u2029"})
def test_a_yaml_1_1_reader_gets_the_same_values(value: dict[str, object]) -> None:
    assert yaml.safe_load(yaml12.dump(value)) == value


# Lines of the plain block style, and lines that are nearly one.
HEADS = ["a: ", "b: ", "on: ", "'on': ", "null: ", "y1:", "a:", "- "]
WORDS = ["", "x", "x y", "off", "~", "null", "true", "1", "017", "0o17", "0x1F", "-1", "1e-3", ".5", "-.inf", "a.b/c-d", "'x y'", "''", "'1'", "...", "2024-01-01", "1_000"]  # fmt: skip
ODD_HEADS = ["-", "", "1: ", "<<: ", "'': ", "true: ", "? "]
ODD_WORDS = ["'a''b'", '"x"', "---", "- x", "a: 1", "a:", "!!str x", "&a x", "*a", "[x]", "x #y", "x: y", "x\ty", "x ", "é", "|", ">", "%x", "@x", "=", "-", "- - x", "9" * 5000]  # fmt: skip
INDENTS = ["", "  ", "    "]
PLAIN_LINES = st.builds("{}{}{}\n".format, *map(st.sampled_from, (INDENTS, HEADS, WORDS)))
ODD_LINES = st.builds(
    "{}{}{}\n".format,
    *map(st.sampled_from, ([*INDENTS, "   ", " " * 42], HEADS + ODD_HEADS, WORDS + ODD_WORDS)),
)


def _outcome(parse: Callable[[str, str], Any], text: str) -> str:
    try:
        return repr(parse(text, "here"))
    except UserError as error:
        return f"refused: {error}"


@settings(max_examples=1000)
@given(
    st.lists(PLAIN_LINES | ODD_LINES, max_size=4).map("".join)
    | st.lists(PLAIN_LINES, max_size=6).map("".join)
)
def test_the_fast_way_of_plain_text_gives_what_the_full_parser_gives(text: str) -> None:
    assert _outcome(yaml12.parse, text) == _outcome(yaml12._parse_any, text)


def test_any_two_plain_lines_are_read_or_refused_alike() -> None:
    lines = [indent + head + word for indent in INDENTS for head in HEADS for word in ("", "x", "'1'", "-1")]
    for first, second in product(lines, lines):
        text = f"{first}\n{second}\n"
        assert _outcome(yaml12.parse, text) == _outcome(yaml12._parse_any, text), text


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,4}", fullmatch=True), VALUES, max_size=4))
def test_what_is_dumped_is_read_alike_both_ways(value: object) -> None:
    text = yaml12.dump(value)
    assert _outcome(yaml12.parse, text) == _outcome(yaml12._parse_any, text)


@pytest.mark.parametrize("name", ["base", "mid", "smoke"])
def test_a_resolved_configuration_takes_the_fast_way(name: str) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml", [], phase=3, env={})
    text = dump_yaml(config)
    assert yaml12._PLAIN.fullmatch(text)
    assert yaml12.parse(text, "here") == yaml12._parse_any(text, "here")


def test_a_file_that_cannot_be_a_configuration(tmp_path: Path) -> None:
    missing, folder, binary, big, listed, empty = (
        tmp_path / name for name in ("missing.yaml", "folder", "binary", "big", "list", "empty")
    )
    folder.mkdir()
    binary.write_bytes(b"a: \xff\xfe")
    big.write_text("# " + "x" * yaml12.MAX_BYTES)
    listed.write_text("- a")
    empty.write_text("# nothing but a comment")
    for path, says in (
        (missing, "does not exist; give the path"),
        (folder, "cannot be read (Is a directory)"),
        (binary, "is not UTF-8 text (byte 3); save it as UTF-8"),
        (big, f"a configuration has at most {yaml12.MAX_BYTES}"),
        (listed, "holds list"),
        (empty, "holds nothing; a configuration is a mapping"),
    ):
        with pytest.raises(UserError) as error:
            yaml12.read(path)
        assert str(path) in str(error.value)
        assert says in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert yaml12.read(path) == {"a": 1}
