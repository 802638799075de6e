from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from cedkv.core.errors import UserError
from cedkv.tracking.names import (
    MAX_PARAM,
    check_artifact_path,
    check_experiment,
    check_key,
    check_run_id,
    clip,
    flatten,
)


@pytest.mark.parametrize(
    "name", ["lambda_off", "atom_mass/key", "perf/seconds_stress eval", "a.b-c:d", "nonfinite/a/b"]
)
def test_names_that_mlflow_takes_are_accepted(name: str) -> None:
    _validate_metric_name(name)
    assert check_key(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a<b",
        "a>b",
        "p@1",
        "a#b",
        "a=b",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a/../b",
        ".",
        "./a",
        "가",
        "a\n",
        "x" * 241,
    ],
)
def test_other_names_are_refused_with_the_rule_and_the_remedy(name: str) -> None:
    with pytest.raises(UserError, match="rename it"):
        check_key(name)


@given(st.text(max_size=30))
def test_a_name_that_passes_is_one_that_mlflow_takes(name: str) -> None:
    try:
        check_key(name)
    except UserError:
        return
    _validate_metric_name(name)  # raises when it would refuse


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        "abc",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "g" * 32,
        "../../etc/passwd",
        "../" + "0" * 29,
        "0" * 32 + "\n",
        "0" * 31 + "/",
    ],
)
def test_what_is_no_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(UserError, match="32 lower-case hex digits"):
        check_run_id(run_id)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a//b", "", "a/", "C:/x", "a\0b", "./a", "a b"]
)
def test_paths_out_of_a_run_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="path inside a run"):
        check_artifact_path(path)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "x" * 257])
def test_experiment_names_that_cannot_be_typed_back_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="experiment name"):
        check_experiment(name)


def test_clip_keeps_short_text_and_marks_long_text_with_its_hash() -> None:
    assert clip("서울", 10) == "서울"
    first, second = clip("a" * 7000, 6000), clip("a" * 7001, 6000)
    assert len(first) == len(second) == 6000
    assert first != second
    assert first.endswith("]")
    assert "7000 characters, sha256 " in first


@given(st.text(st.characters(), max_size=300), st.integers(150, 400))
def test_clipped_text_can_be_stored(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped) <= limit
    assert "\0" not in clipped
    clipped.encode()  # raises on a lone surrogate


def test_params_are_flat_typed_text_and_lose_nothing() -> None:
    params = {
        "phase3": {"loss": {"on": 1.0, "q": None}, "topk": [32, 16]},
        "name": "x",
        "flag": True,
        "empty": {},
    }
    assert dict(flatten(params)) == {
        "phase3.loss.on": "1.0",
        "phase3.loss.q": "null",
        "phase3.topk": "[32,16]",
        "name": "x",
        "flag": "true",
        "empty": "{}",
    }


def test_a_long_param_is_cut_to_what_a_store_takes() -> None:
    ((name, value),) = flatten({"prompts": ["x" * 9000]})
    assert (name, len(value)) == ("prompts", MAX_PARAM)
    assert value.startswith('["xxx')


def test_a_param_name_that_mlflow_refuses_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"parameter name 'a.b=c'"):
        list(flatten({"a": {"b=c": 1}}))
