from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.hashing import content_hash
from cedkv.tracking.encode import encode_json, encode_lines
from cedkv.tracking.record import OnRow, StressRow
from cedkv.tracking.tables import parse_config, parse_mapping, parse_rows

FINITE = st.floats(allow_nan=False, allow_infinity=False)
STRESS_ROWS = st.builds(StressRow, *[st.text()] * 3, FINITE, st.text(), FINITE, *[st.text()] * 3)


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
