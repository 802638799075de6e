from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedkv.core.hashing import content_hash
from cedkv.tracking import tables
from cedkv.tracking.encode import encode_json, encode_lines
from cedkv.tracking.record import OnRow, StressRow
from cedkv.tracking.tables import parse_config, parse_mapping, parse_rows

FINITE = st.floats(allow_nan=False, allow_infinity=False)
STRESS_ROWS = st.builds(StressRow, *[st.text()] * 3, FINITE, st.text(), FINITE, *[st.text()] * 3)
ON_ROWS = st.builds(
    OnRow,
    *[st.text()] * 4,
    st.integers(-(10**18) + 1, 10**18 - 1),
    *[st.booleans()] * 3,
    *[st.one_of(FINITE, st.just(math.nan))] * 6,
)


@given(st.lists(STRESS_ROWS, max_size=5))
def test_a_table_reads_back_as_it_was_written(rows: list[StressRow]) -> None:
    text, nonfinite = encode_lines(dataclasses.asdict(row) for row in rows)
    assert nonfinite == 0
    assert parse_rows(text, StressRow) == tuple(rows)


def test_logged_lines_are_the_lines_that_the_content_hash_hashes(on_row: dict[str, Any]) -> None:
    import hashlib

    text, _ = encode_lines([on_row, on_row])
    assert hashlib.sha256(text.removesuffix("\n").encode()).hexdigest() == content_hash([on_row, on_row])


def test_a_number_that_is_not_finite_is_null_in_the_file_counted_and_nan_when_read(
    stress_row: dict[str, Any],
) -> None:
    text, nonfinite = encode_lines([stress_row | {"stress_delta": math.inf, "typical": math.nan}])
    assert nonfinite == 2
    assert "Infinity" not in text
    (row,) = parse_rows(text, StressRow)
    assert math.isnan(row.stress_delta)
    assert math.isnan(row.typical)


# ------------------------------------------------------------------ the two ways to read a table give the same rows
def _outcome(read: Callable[[], tuple[OnRow, ...]]) -> str:
    """What reading gives, or how it refuses; as text, in which NaN equals NaN and 1 is not 1.0 or True."""
    try:
        return repr(read())
    except ValueError as error:
        return f"refused: {error}"


def _both_ways(text: str) -> tuple[str, str]:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(OnRow)}
    return _outcome(lambda: parse_rows(text, OnRow)), _outcome(lambda: tables._strict(text, OnRow, kinds))


def _is_canonical(text: str, row_type: type) -> bool:
    kinds = tuple((field.name, str(field.type)) for field in dataclasses.fields(row_type))
    return tables._canonical(text, kinds) is not None


@given(st.lists(ON_ROWS, min_size=1, max_size=4))
def test_what_the_writer_writes_takes_the_fast_way(rows: list[OnRow]) -> None:
    text, _ = encode_lines(dataclasses.asdict(row) for row in rows)
    assert _is_canonical(text, OnRow)
    fast, strict = _both_ways(text)
    assert fast == strict == repr(tuple(rows))


# Values as text: of every kind of field, of none, and such as only Python's own reader takes.
VALUES = st.sampled_from(
    [
        *("null", "true", "false", "True", "0", "1", "-0", "7", "007", "+7", "1_0", "-", ""),
        *("1.5", "1.", ".5", "1e3", "1E+03", "1e", "-0.0", "1e999", "-1e999", "1e-999", "1e308", "17.0"),
        *("9" * 18, "9" * 19, "9" * 320, "9" * 5000, "٣", "NaN", "Infinity", "-Infinity", "nan", "inf"),
        *(
            '""',
            '"x"',
            '"a\\\\b"',
            '"a\\"b"',
            '"\\/"',
            '"\\u00e9"',
            '"\\ud83d\\ude00"',
            '"\\ud800"',
            '"\\u12"',
            '"\\x41"',
        ),
        *(
            '"\t"',
            '"a\u2028b"',
            '"\x7f"',
            '"\ud800"',
            '"}\\n{"',
            "'x'",
            '"',
            '"\\',
            "[]",
            "{}",
            '{"id":"x"}',
            "[1]",
        ),
    ]
)
PIECES = [*' \t\n\r\f,:{}[]"\\/.eE+-0189nulltruefalse\x00\x1f\x85\u2028\ufeff', "NaN", "},{", "}\n{", "\n\n"]


@st.composite
def damaged_tables(draw: st.DrawFn) -> str:
    """Two written lines, then a few changes: of a value, of the fields and their order, of any characters."""
    rows = draw(st.lists(ON_ROWS, min_size=2, max_size=2))
    lines = encode_lines(dataclasses.asdict(row) for row in rows)[0].removesuffix("\n").split("\n")
    fields = [
        f"{json.dumps(name)}:{json.dumps(value)}" for name, value in sorted(json.loads(lines[1]).items())
    ]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(fields) - 1))
        name = fields[place].partition(":")[0]
        fields[place : place + 1] = draw(
            st.sampled_from(
                [[f"{name}:{draw(VALUES)}"], [], [fields[place]] * 2, ['"extra":1', fields[place]]]
            )
        ) or ["" if len(fields) == 1 else fields[place - 1]]
    fields = draw(st.sampled_from([fields, fields, fields[::-1]]))
    text = (
        lines[0] + "\n{" + ",".join(fields) + "}" + draw(st.sampled_from(["\n", "", "\n\n", " \n", "\r\n"]))
    )
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from([*PIECES, ""])) + text[start + draw(st.integers(0, 2)) :]
    return text


@settings(max_examples=600)
@given(damaged_tables())
def test_every_line_written_or_damaged_is_read_or_refused_alike(text: str) -> None:
    fast, strict = _both_ways(text)
    assert fast == strict


def test_any_piece_at_any_place_of_a_table_is_read_or_refused_alike() -> None:
    row = dataclasses.asdict(OnRow("o", "", 'a"b', "\\", -3, *[True] * 3, -0.5, 1e-9, math.nan, *[0.0] * 3))
    text, _ = encode_lines([row, row])
    for place in range(len(text) + 1):
        for piece in ["", *PIECES]:
            fast, strict = _both_ways(text[:place] + piece + text[place + (not piece) :])
            assert fast == strict, (place, piece)


@pytest.mark.parametrize("kind", ["str", "int", "float", "bool"])
@given(value=VALUES)
def test_every_value_in_every_kind_of_field_is_read_or_refused_alike(kind: str, value: str) -> None:
    field = next(field.name for field in dataclasses.fields(OnRow) if field.type == kind)
    row = dataclasses.asdict(OnRow("o", "d", "p", "a", 1, *[True] * 3, *[0.5] * 6))
    line = ",".join(f'"{name}":{value if name == field else json.dumps(row[name])}' for name in sorted(row))
    fast, strict = _both_ways(f"{{{line}}}\n")
    assert fast == strict


def test_a_table_of_full_size_is_read_the_fast_way_only_when_every_line_is(
    stress_row: dict[str, Any],
) -> None:
    lines = encode_lines(stress_row | {"id": f"s{n}"} for n in range(2048))[0].split("\n")
    assert _is_canonical("\n".join(lines), StressRow)
    lines[2000] = lines[2000].replace(":", ": ", 1)
    assert not _is_canonical("\n".join(lines), StressRow)
    assert len(parse_rows("\n".join(lines), StressRow)) == 2048
    lines[1000] = lines[1000].replace('"id"', '"id":"s7","id"', 1)
    with pytest.raises(ValueError, match="line 1001: a key occurs twice"):
        parse_rows("\n".join(lines), StressRow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": 2.0}, "tokens: float 2.0 is not int"),
        ({"tokens": True}, "tokens: bool True is not int"),
        ({"base_correct": 1}, "base_correct: int 1 is not bool"),
        ({"base_correct": None}, "base_correct: NoneType None is not bool"),
        ({"base_logp": "-1"}, "base_logp: str '-1' is not float"),
        ({"base_logp": True}, "base_logp: bool True is not float"),
        ({"id": 7}, "id: int 7 is not str"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"base_logp": 10**400}, "base_logp: int 10{59} is not a finite number"),
    ],
)
def test_a_row_of_another_shape_is_refused_with_its_line(
    on_row: dict[str, Any], change: dict, reason: str
) -> None:
    text = json.dumps(on_row) + "\n" + json.dumps(on_row | change) + "\n"
    with pytest.raises(ValueError, match=f"line 2.*{reason}"):
        parse_rows(text, OnRow)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        '{"a": 1} x',
        "[" * 100_000,
    ],
)
def test_json_that_is_not_one_finite_unambiguous_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_mapping(text)
    with pytest.raises(ValueError, match=r"line 1|^$") if text else pytest.raises(AssertionError):
        assert parse_rows(text, OnRow)


def test_a_missing_line_is_refused(on_row: dict[str, Any]) -> None:
    line = json.dumps(on_row)
    with pytest.raises(ValueError, match="line 2"):
        parse_rows(f"{line}\n\n{line}\n", OnRow)


def test_a_logged_configuration_keeps_on_and_off_as_words() -> None:
    assert parse_config("loss:\n  on: 1\n  off: off\n") == {"loss": {"on": 1, "off": "off"}}


@pytest.mark.parametrize(
    "text", ["", "- a", "a: 1\na: 2", "a: !!python/object/apply:os.system [true]", "a: [", "x"]
)
def test_a_logged_configuration_that_is_no_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_config(text)


def test_json_artifacts_take_numpy_and_dataclasses_and_count_what_is_not_finite(
    stress_row: dict[str, Any],
) -> None:
    import numpy as np

    content = {
        "row": StressRow(**stress_row),
        "array": np.array([1.0, np.nan]),
        "n": np.int64(3),
        "t": (1, math.inf),
    }
    text, nonfinite = encode_json(content)
    assert nonfinite == 2
    read = parse_mapping(text)
    assert read == {"row": stress_row, "array": [1.0, None], "n": 3, "t": [1, None]}


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"set .* has no JSON form"):
        encode_json({"a": {1, 2}})
