"""Checkpoints on disk: what was written comes back, what was not is never taken for it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedkv.train.checkpoint import KEPT, Checkpoint, Checkpoints, differences


def made(step: int) -> Checkpoint:
    tensors = {"bank.logits": torch.full((2, 3), float(step)), "order": torch.arange(5, dtype=torch.uint8)}
    return Checkpoint(step, {"lr": "0.05"}, {"ema": math.nan, "rows": [{"step": step}]}, tensors)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    with Checkpoints(folder) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(made(step))
    return folder


def test_the_newest_comes_back_and_as_many_as_are_kept_stay(written):
    with Checkpoints(written) as checkpoints:
        found = checkpoints.newest(pytest.fail)
    assert len(list(written.iterdir())) == KEPT
    assert (found.step, found.facts) == (15, {"lr": "0.05"})
    assert math.isnan(found.state["ema"])
    assert all(torch.equal(x, made(15).tensors[name]) for name, x in found.tensors.items())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["state.safetensors", "state.json", "manifest.json"]),
    change=st.one_of(
        st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
        st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
        st.tuples(st.just("replace"), st.binary(max_size=60), st.just(0)),
        st.tuples(
            st.just("replace"),
            st.sampled_from([b"[]", b"null", b"{}", b"[" * 9000, b'{"format": 1}']),
            st.just(0),
        ),
    ),
)
def test_a_changed_file_is_never_taken_for_what_was_written(written, tmp_path, name, change):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(written, copy)
    file = copy / "step-00000015" / name
    content = file.read_bytes()
    how, what, mask = change
    if how == "cut":
        content = content[: int(what * len(content))]
    elif how == "flip":
        place = int(what * len(content))
        content = content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]
    else:
        content = what
    file.write_bytes(content)
    told: list[str] = []
    with Checkpoints(copy) as checkpoints:
        found = checkpoints.newest(told.append)
    assert found.step == 10
    assert len(told) == 1
    assert "step-00000015" in told[0]


def test_a_folder_without_a_good_one_gives_none(tmp_path):
    (tmp_path / "run" / "step-00000005").mkdir(parents=True)
    (tmp_path / "run" / "notes").mkdir()
    told: list[str] = []
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest(told.append) is None
    assert len(told) == 1


@given(
    st.dictionaries(st.text(max_size=3), st.integers()), st.dictionaries(st.text(max_size=3), st.integers())
)
def test_differences_turn_one_into_the_other(was, now):
    found = differences(was, now)
    changed = {**was, **{name: new for name, (_, new) in found.items()}}
    assert {name: value for name, value in changed.items() if value is not None} == now
