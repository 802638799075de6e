"""Warnings about delimiters: on the change, with who and when, and not at every step."""

from __future__ import annotations

import json

import pytest
import torch

from cedkv import ledger
from cedkv.train.delimiter_watch import DelimiterWatch
from cedkv.train.main import run_training


@pytest.fixture
def watch():
    said: list[str] = []
    return DelimiterWatch(0.2, 0.9, ["a", "b"], said.append), said


def test_changes_are_noted_and_the_first_of_them_is_said(watch):
    watched, said = watch
    steps = [
        ([[0.0, 0.1], [0.0, 0.0]], 0, 0, []),
        ([[0.0, 0.18], [0.0, 0.0]], 1, 0, [("a", 1, "near")]),
        ([[0.0, 0.19], [0.0, 0.0]], 1, 0, []),
        ([[0.18, 0.2], [0.2, 0.0]], 3, 1, [("a", 0, "near"), ("a", None, "near"), ("b", 0, "near")]),
        ([[0.0, 0.2], [0.2, 0.0]], 2, 0, [("a", 0, "left"), ("a", None, "left")]),
        ([[0.0, 0.0], [0.0, 0.0]], 0, 0, [("a", 1, "left"), ("b", 0, "left")]),
    ]
    for step, (mass, slots, states, expected) in enumerate(steps):
        before = len(watched.changes)
        found = watched.observe(step, torch.tensor(mass))
        assert found == {ledger.WARN_DELIMITER_SLOTS: slots, ledger.WARN_DELIMITER_STATES: states}
        new = [(row["document"], row["slot"], row["change"]) for row in watched.changes[before:]]
        assert sorted(new, key=str) == sorted(expected, key=str)
        assert all(row["step"] == step for row in watched.changes[before:])
    assert watched.first_step == 1
    assert len(said) == 1
    assert "step 1: slot 1 of a at 0.18 delimiter mass, 0.9 of the cap 0.2 or more" in said[0]
    watched.observe(9, torch.full((2, 2), 0.2))
    assert len(said) == 2
    assert "and 5 more" in said[1]
    assert watched.first_step == 1


@pytest.mark.parametrize("share", ["shared", "head"])
def test_a_slot_that_the_cap_holds_stands_at_it_whatever_it_would_like(tiny, share):
    bank = tiny.bank(tiny("qwen3"), share=share)
    with torch.no_grad():
        bank.logits.copy_(torch.where(bank.is_delimiter, 9.0, bank.logits))
    mass = bank.delimiter_mass(4)
    flags = bank.is_delimiter[:, 0, 0].any(-1)
    torch.testing.assert_close(mass, torch.where(flags, 0.15, 0.0))
    weights = bank.mixture(4).weights
    after = (weights * bank.is_delimiter).sum(-1).amax((1, 2))
    torch.testing.assert_close(mass, after)


def test_a_run_logs_its_warnings(small_config, store_uri, capsys):
    from pathlib import Path

    from cedkv.tracking.reader import read_run

    # Next to no mass is allowed: every slot with a delimiter among its candidates comes near at once.
    config = small_config(
        f"tracking.uri={store_uri}", "phase3.candidate.delimiter.mass_cap=1e-4", "phase3.train.steps=3"
    )
    run = run_training(config, phase=3, progress=False)
    record = read_run(run, store_uri)
    assert record.tags[ledger.TAG_DELIMITER] == "0"
    assert record.metrics[ledger.WARN_DELIMITER_SLOTS] > 0
    (file,) = Path(store_uri.removeprefix("sqlite:///")).parent.glob(
        f"**/{run}/**/{ledger.DELIMITER_WARNINGS}"
    )
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["change"] for row in rows} <= {"near", "left"}
    assert {row["document"] for row in rows} <= {f"doc-{n:04d}" for n in range(64)}
    told = [line for line in capsys.readouterr().err.splitlines() if "delimiter mass" in line]
    assert len(told) == 1


def test_where_heads_mix_for_themselves_metric_heat_map_and_warning_agree_on_the_worst_of_them(
    small_config, store_uri
):
    from cedkv.tracking.reader import metric_history, read_rows

    cap = "phase3.candidate.delimiter.mass_cap=0.02"
    config = small_config(f"tracking.uri={store_uri}", "phase3.mix.share=head", cap)
    run = run_training(config, phase=3, progress=False)
    history = metric_history(run, [ledger.DELIMITER_SLOT_MAX, ledger.WARN_DELIMITER_SLOTS], store_uri)
    most = {point.step: point.value for point in history[ledger.DELIMITER_SLOT_MAX]}
    near = {point.step: point.value for point in history[ledger.WARN_DELIMITER_SLOTS]}
    by_step: dict[int, list[float]] = {}
    for row in read_rows(run, ledger.DELIMITER_SLOTS, store_uri) or ():
        by_step.setdefault(row["step"], []).extend(row["mass"])
    shared = by_step.keys() & most.keys()
    assert len(shared) > 1
    assert {step: max(by_step[step]) for step in shared} == {step: most[step] for step in shared}
    assert all((most[step] >= 0.9 * 0.02 - 1e-6) == (near[step] > 0) for step in most)
    assert max(near.values()) > 0
