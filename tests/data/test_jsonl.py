from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.data import lines
from cedkv.data.facts import FactError, _occurrences, locate
from cedkv.data.jsonl import read_documents, read_off, read_on
from cedkv.data.records import Document, OffPrompt, OnPrompt, Span

DOCUMENT = b'{"id": "a", "text": "Bo is red."}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def write(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def document(**changes: object) -> dict[str, object]:
    return {"id": "a", "text": "Bo is red.", **changes}


# --------------------------------------------------------------------------------------------------- what is accepted
def test_documents_keep_file_order_and_their_text_exactly(file: Path) -> None:
    text = "  Zwölf\n\tCafe\u0301 😀 。 "
    write(file, {"id": "z", "text": text}, {"id": "a", "text": "x"})
    assert read_documents(file) == (Document("z", text), Document("a", "x"))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + DOCUMENT + b"\n",
        DOCUMENT,
        DOCUMENT + b"\r\n",
        b"\n\r\n   \n" + DOCUMENT + b"\n\n",
        b"  " + DOCUMENT + b"\t\n",
    ],
    ids=["byte order mark", "no newline at the end", "CRLF", "blank lines", "white space around"],
)
def test_harmless_variations_of_the_format(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert read_documents(file) == (Document("a", "Bo is red."),)


def test_only_newlines_separate_rows(file: Path) -> None:
    file.write_text('{"id": "a", "text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert read_documents(file)[0].text == "one\u2028two\x85three"


# -------------------------------------------------------------------------------------------------- what every file refuses
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a", "text": "x",}', ":1: column 25: broken JSON"),
        (DOCUMENT + b'\n{"id": "b" "text": "x"}', ":2: column 12: broken JSON: Expecting ',' delimiter"),
        (DOCUMENT + DOCUMENT, ":1: column 34: broken JSON: Extra data"),
        (b'["a", "x"]', r":1: is \['a', 'x'\]; every line must be one JSON object"),
        (b"null", ":1: is None; every line must be one JSON object"),
        (b'{"id": "a", "text": NaN}', ":1: NaN is not JSON"),
        (b'{"id": "a", "text": [-Infinity]}', ":1: -Infinity is not JSON"),
        (b'{"id": "a", "text": "x\x00"}', ":1: NUL byte at byte 23"),
        (b'{"id": "a", "text": "caf\xe9"}', r":1: byte 25 \(0xe9\) is not UTF-8"),
        (b'{"id": "a", "id": "b", "text": "x"}', ":1: key 'id' is given twice"),
        (b"[" * 100_000, ":1: nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b', "text": "x"}', ":1: broken JSON: Exceeds the limit"),
        (b'{"id": "a", "text": "x", "facs": []}', ":1: unknown key 'facs'; did you mean 'facts'"),
        (b'{"id": "a", "text": "x", "zzz": []}', ":1: unknown key 'zzz'; use 'id', 'text', 'facts', 'spans'"),
        (b'{"id": "a"}', ":1: key 'text' is missing"),
        (b'{"id": 7, "text": "x"}', ":1: 'id' is 7; it must be a string, not int"),
        (b'{"id": "a", "text": null}', ":1: 'text' is None; it must be a string"),
        (b'{"id": "a", "text": " \\n\\t"}', ":1: 'text' is .*must not be empty or blank"),
        (b'{"id": "a", "text": "x\\u0000y"}', ":1: 'text' is .*NUL character"),
        (b'{"id": "a", "text": "x\\ud800y"}', ":1: 'text' is .*surrogate"),
        (DOCUMENT + b"\n\n" + DOCUMENT, ":3: document id 'a' was given at line 1 already"),
    ],
)
def test_a_broken_row_is_named_with_file_and_line(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_documents(file)
    assert str(caught.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\n \n\r\n", "holds no rows"),
        (b"\xef\xbb\xbf", "holds no rows"),
        (DOCUMENT.decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_without_rows_or_of_another_encoding(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_documents(file)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl: cannot be read \(No such file"):
        read_documents(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_documents(tmp_path)


def test_a_huge_line_is_refused_and_the_next_still_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    fits = b'{"id": "a", "text": "' + b"x" * 77 + b'"}'
    assert len(fits) == 100
    file.write_bytes(fits + b"\r\n")
    assert len(read_documents(file)) == 1
    for extra in (1, 2, 3, 100, 101, 1000):
        file.write_bytes(fits + b" " * extra + b"y" + b"\n" + b"[]\n")
        with pytest.raises(UserError) as caught:
            read_documents(file)
        first, second = str(caught.value).split("\n")
        assert first.startswith(f"{file}:1: is longer than 100 bytes")
        assert second.startswith(f"{file}:2: is []")


def test_several_mistakes_are_listed_up_to_twenty(file: Path) -> None:
    write(file, *({"id": f"{n}", "text": ""} for n in range(25)))
    with pytest.raises(UserError) as caught:
        read_documents(file)
    listed = str(caught.value).split("\n")
    assert [line.split(": ")[0] for line in listed[:20]] == [f"{file}:{n}" for n in range(1, 21)]
    assert listed[20:] == ["... and 5 more in this file"]


def test_long_values_are_cut_in_messages(file: Path) -> None:
    write(file, document(id=["x" * 1000]))
    with pytest.raises(UserError) as caught:
        read_documents(file)
    assert len(str(caught.value)) < len(str(file)) + 200


# ----------------------------------------------------------------------------------------------------------- documents
def spans_of(file: Path, text: str, **marks: object) -> list[tuple[str, str]]:
    (only,) = read_documents(write(file, {"id": "a", "text": text, **marks}))
    return [(only.text[span.start : span.stop], span.role) for span in only.spans]


def test_explicit_spans_are_sorted(file: Path) -> None:
    spans = [{"start": 6, "stop": 9, "role": "value"}, {"start": 0, "stop": 2, "role": "key"}]
    (only,) = read_documents(write(file, document(spans=spans)))
    assert only.spans == (Span(0, 2, "key"), Span(6, 9, "value"))


def test_a_fact_is_marked_where_key_and_value_are_nearest(file: Path) -> None:
    text = "red red. Then Bo, who is not Ada, is red. Bo was blue."
    assert spans_of(file, text, facts=[{"key": "Bo", "value": "red"}]) == [("red", "value"), ("Bo", "key")]
    (only,) = read_documents(file)
    assert [span.start for span in only.spans] == [37, 42]


def test_whole_words_go_before_parts_and_scripts_without_spaces_work(file: Path) -> None:
    text = "Bobby is reddish. Bo is red."
    (only,) = read_documents(write(file, {"id": "a", "text": text, "facts": [{"key": "Bo", "value": "red"}]}))
    assert [span.start for span in only.spans] == [18, 24]
    facts = [{"key": "首都", "value": "巴黎"}]
    assert spans_of(file, "法国的首都是巴黎。", facts=facts) == [("首都", "key"), ("巴黎", "value")]


def test_two_facts_about_one_key_share_its_span(file: Path) -> None:
    facts = [{"key": "Bo", "value": "red"}, {"key": "Bo", "value": "big"}]
    assert spans_of(file, "Bo is red, big.", facts=facts) == [
        ("Bo", "key"),
        ("red", "value"),
        ("big", "value"),
    ]


@given(st.text("ab .", min_size=1, max_size=30), st.data())
def test_the_nearest_pair_is_that_of_a_plain_search(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.integers(0, len(text) - 1))
    key, value = text[start : start + 2], text[other : other + 1]
    gaps = [
        (max(right - left - len(key), left - right - len(value)), left)
        for left in _occurrences(text, key)
        for right in _occurrences(text, value)
        if right >= left + len(key) or right + len(value) <= left
    ]
    if not gaps:
        with pytest.raises(FactError, match="only occur inside each other"):
            locate(text, [(key, value)])
        return
    spans = {span.role: span for span in locate(text, [(key, value)])}
    assert text[spans["key"].start : spans["key"].stop] == key
    assert text[spans["value"].start : spans["value"].stop] == value
    gap = max(spans["value"].start - spans["key"].stop, spans["key"].start - spans["value"].stop)
    assert (gap, spans["key"].start) == min(gaps)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"facts": [{"key": "bo", "value": "red"}]}, "'bo' does not occur in the text; spell it exactly"),
        ({"facts": [{"key": "Bo", "value": "o"}]}, "key 'Bo' and value 'o' only occur inside each other"),
        ({"facts": {"key": "Bo"}}, "'facts' is .*must be a list"),
        ({"facts": ["Bo"]}, r"facts\[0\] is 'Bo'; a fact is an object"),
        ({"facts": [{"key": "Bo"}]}, r"facts\[0\] is .*'key' and 'value'"),
        ({"facts": [{"key": "Bo", "value": 3}]}, r"facts\[0\]\.value is 3; it must be a string"),
        ({"facts": [{"key": "Bo", "value": ""}]}, r"facts\[0\]\.value is ''; it must not be empty"),
        ({"facts": [], "spans": []}, "has both 'facts' and 'spans'"),
        ({"spans": [{"start": 0, "stop": 2}]}, r"spans\[0\] is .*a span is an object"),
        ({"spans": [{"start": 0, "stop": 2, "role": "x"}]}, r"spans\[0\] is .*role"),
        ({"spans": [{"start": True, "stop": 2, "role": "key"}]}, r"spans\[0\] is .*whole numbers"),
        ({"spans": [{"start": 0, "stop": 2.0, "role": "key"}]}, r"spans\[0\] is .*whole numbers"),
        (
            {"spans": [{"start": 0, "stop": 99, "role": "key"}]},
            "span 0 to 99 is outside the text; .*stop <= 10",
        ),
        ({"spans": [{"start": 2, "stop": 2, "role": "key"}]}, "span 2 to 2 is outside"),
        (
            {"spans": [{"start": 0, "stop": 4, "role": "key"}, {"start": 3, "stop": 6, "role": "value"}]},
            "characters 3 to 4 are marked both as key and as value",
        ),
    ],
)
def test_marks_that_cannot_be_placed(file: Path, marks: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f":1: {message}"):
        read_documents(write(file, document(**marks)))


# ------------------------------------------------------------------------------------------------------------------ ON
def on(prompt: str, **changes: object) -> dict[str, object]:
    return {"document": "a", "prompt": prompt, "answer": " red", **changes}


def test_on_rows_with_and_without_ids_and_splits(file: Path) -> None:
    write(file, on("Bo is", id="one", split="eval"), on("What is Bo?", split="train"))
    first, second = read_on(file, {"a"}, seed=0)
    assert first == OnPrompt("one", "a", "Bo is", " red", "eval")
    assert (second.split, second.id[:3], len(second.id)) == ("train", "on-", 19)


@pytest.mark.parametrize(("count", "held_out"), [(1, 1), (2, 1), (4, 1), (5, 2), (12, 3)])
def test_a_quarter_of_each_documents_rows_without_a_split_is_held_out(
    file: Path, count: int, held_out: int
) -> None:
    rows = [on(f"prompt {n}", document=name) for name in "ab" for n in range(count)]
    found = read_on(write(file, *rows), {"a", "b"}, seed=3)
    for name in "ab":
        assert sum(row.split == "eval" for row in found if row.document == name) == held_out


def test_the_split_depends_on_seed_and_content_not_on_order(file: Path) -> None:
    rows = [on(f"prompt {n}", document=name) for name in "ab" for n in range(20)]
    first = read_on(write(file, *rows), {"a", "b"}, seed=3)
    shuffled = read_on(write(file, *random.Random(1).sample(rows, len(rows))), {"a", "b"}, seed=3)
    assert set(first) == set(shuffled)
    assert set(first) != set(read_on(file, {"a", "b"}, seed=4))


def test_stated_splits_are_kept(file: Path) -> None:
    rows = [on(f"p {n}", split="train") for n in range(8)] + [on(f"q {n}") for n in range(4)]
    found = read_on(write(file, *rows), {"a"}, seed=3)
    assert all(row.split == "train" for row in found[:8])
    assert sum(row.split == "eval" for row in found[8:]) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (on("Bo is", document="mil"), "'document' is 'mil', no id of a document; did you mean 'mill'"),
        (on("Bo is", split="test"), "'split' is 'test'; it must be one of 'train', 'eval'"),
        (on("Bo is", split=["eval"]), r"'split' is \['eval'\]"),
        (on("Bo is", answer=""), "'answer' is ''; it must not be empty"),
        (on("  "), "'prompt' is '  '; it must not be empty"),
        ({"document": "a", "prompt": "x"}, "key 'answer' is missing"),
        (on("first  PROMPT"), "this prompt of document 'a' was given at line 1 already"),
        (on("other", id="one"), "id 'one' was given at line 1 already"),
        (on("other", id=""), "'id' is ''; it must not be empty"),
    ],
)
def test_wrong_on_rows(file: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f":2: {message}"):
        read_on(write(file, on("First prompt", id="one"), row), {"a", "mill"}, seed=0)


# ----------------------------------------------------------------------------------------------------------------- OFF
def test_off_rows_without_splits(file: Path) -> None:
    write(file, {"prompt": "two and"}, {"prompt": "x", "id": "7", "family": "sums"}, {"prompt": "Two  and"})
    found = read_off(file)
    assert (found.train, found.stress, found.sealed) == ([], [], [])
    assert found.unsplit[1] == OffPrompt("7", "x", "sums")
    assert found.unsplit[0].id == found.unsplit[2].id
    assert found.unsplit[0].family == "off"


def test_off_rows_with_splits(file: Path) -> None:
    names = ("train", "stress", "sealed")
    found = read_off(write(file, *({"prompt": f"p {name}", "split": name} for name in names)))
    assert [[row.prompt for row in getattr(found, name)] for name in names] == [
        [f"p {name}"] for name in names
    ]
    assert found.unsplit == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"prompt": "a"},
            {"prompt": "b", "split": "train"},
            "line 1 and this one differ in having a 'split'",
        ),
        (
            {"prompt": "a", "split": "train"},
            {"prompt": "b"},
            "line 1 and this one differ in having a 'split'",
        ),
        (
            {"prompt": "a", "split": "train"},
            {"prompt": "A ", "split": "sealed"},
            "this prompt was given at line 1",
        ),
        ({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, "id 'x' was given at line 1 already"),
        ({"prompt": "a"}, {"prompt": "b", "answer": "x"}, "unknown key 'answer'"),
        ({"prompt": "a"}, {"prompt": 5}, "'prompt' is 5; it must be a string"),
        ({"prompt": "a"}, {"prompt": "b", "family": ""}, "'family' is ''"),
        (
            {"prompt": "a", "split": "stress"},
            {"prompt": "b", "split": "eval"},
            "'split' is 'eval'; .*'sealed'",
        ),
    ],
)
def test_wrong_off_rows(file: Path, first: object, second: object, message: str) -> None:
    with pytest.raises(UserError, match=f":2: {message}"):
        read_off(write(file, first, second))
