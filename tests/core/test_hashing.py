from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cedkv.core.hashing import canonical_line, content_hash

TEXT = st.text() | st.sampled_from(["},{", "}", "{", ",", '"},{"', "}\\n{"])
VALUES = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5))
@example([])
@example([{}, {}])
@example([{"a": "},{"}])
@example([{"a": [{}, {}]}, {"b": "},{"}])
def test_the_hash_is_that_of_one_canonical_line_per_row(rows: list[dict[str, Any]]) -> None:
    lines = [
        json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        for row in rows
    ]
    assert [canonical_line(row) for row in rows] == lines
    assert content_hash(iter(rows)) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_hash_of_known_rows_never_changes() -> None:
    rows = [{"id": "s0", "prompt": "Wo?\n서울", "family": "w"}, {"id": "s1", "prompt": "},{", "family": ""}]
    assert content_hash(rows) == "f1df0790af964cd1edc8b7ab5fec8e360d52fafc5f303faee9746368aeb1e446"


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_hash([{"a": 1.0}, {"a": math.nan}])
    with pytest.raises(UnicodeEncodeError):
        content_hash([{"a": "\ud800"}])
