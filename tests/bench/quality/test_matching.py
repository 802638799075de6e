"""Attention matching against independent solutions in float64, and against the teacher where nothing is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from cedkv.bench.quality.judge import judge_states
from cedkv.bench.quality.matched import matched
from cedkv.bench.quality.matching import BOUNDS, masses, match, values_for
from cedkv.bench.quality.setting import Setting
from cedkv.injection.merge import Scoring

SCORING = Scoring(0.5, None)


def problem(seed: int, queries: int = 60, tokens: int = 20, size: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n, size, generator=generator, dtype=torch.float64) for n in (queries, tokens, tokens)
    )


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_masses_are_the_non_negative_least_squares_solution(seed: int, count: int) -> None:
    query, key, _ = problem(seed)
    attention = (0.5 * query @ key.T).softmax(-1)[:, :count]
    expected, _ = nnls(attention.numpy(), np.ones(len(attention)))
    found = masses(attention, bounds=(0.0, math.inf))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3 * max(1.0, expected.max()))
    residual = np.linalg.norm(attention.numpy() @ found.numpy() - 1)
    assert residual == pytest.approx(np.linalg.norm(attention.numpy() @ expected - 1), rel=1e-4)


@given(st.integers(0, 10_000))
def test_masses_keep_their_bounds(seed: int) -> None:
    query, key, _ = problem(seed)
    found = masses((2.0 * query @ key.T).softmax(-1)[:, :5])
    assert BOUNDS[0] <= found.min() + 1e-12
    assert found.max() - 1e-12 <= BOUNDS[1]


@given(st.integers(0, 10_000))
def test_values_are_the_least_squares_solution(seed: int) -> None:
    query, key, value = problem(seed)
    attention = (0.5 * query @ key.T).softmax(-1)
    shares = attention[:, :4] / attention[:, :4].sum(-1, keepdim=True)
    expected, *_ = np.linalg.lstsq(shares.numpy(), (attention @ value).numpy(), rcond=None)
    found = values_for(shares, attention @ value, value[:4])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_keys_that_are_kept_have_the_highest_attention() -> None:
    query, key, value = problem(3)
    attention = (0.5 * query @ key.T).softmax(-1)
    order = np.argsort(-np.sqrt((attention.numpy() ** 2).mean(0)))
    assert match(query, key, value, 7, SCORING).kept.tolist() == sorted(order[:7].tolist())


def test_it_comes_nearer_to_the_output_than_the_kept_tokens_as_they_are() -> None:
    query, key, value = problem(4)
    wanted = (0.5 * query @ key.T).softmax(-1) @ value
    found = match(query, key, value, 6, SCORING)

    def error(k: torch.Tensor, v: torch.Tensor, bias: float | torch.Tensor) -> float:
        return float(((0.5 * query @ k.T + bias).softmax(-1) @ v - wanted).norm())

    assert error(found.key, found.value, found.bias) < 0.7 * error(key[found.kept], value[found.kept], 0.0)


def test_with_every_token_kept_nothing_changes() -> None:
    query, key, value = problem(5, queries=8)  # fewer queries than tokens: both systems leave much open
    found = match(query, key, value, len(key), SCORING)
    torch.testing.assert_close(found.bias, torch.zeros(len(key), dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.value, value, atol=1e-8, rtol=0)


def test_a_document_kept_whole_at_all_layers_is_the_teacher(setting: Setting) -> None:
    experiment = setting.experiment
    lengths = [len(context.ids) for context in experiment.encoded.contexts]
    whole = lengths.index(min(lengths))  # of the others some tokens are left out
    layers = tuple(range(experiment.model.config.num_hidden_layers))
    states = matched(experiment, lengths[whole], layers, "answers")
    rows = judge_states_all(setting, states, whole)
    assert max(rows) < 1e-6
    assert max(judge_states_all(setting, matched(experiment, 3, layers, "answers"), whole)) > 1e-4


def judge_states_all(setting: Setting, states: object, document: int) -> list[float]:
    """KL(teacher || student) of one document's ON evaluation prompts, the slots in all layers."""
    from cedkv.evaluate import SlotMass
    from cedkv.train.tables import on_rows

    name = setting.experiment.encoded.contexts[document].id
    rows = on_rows(setting.experiment, states, SlotMass(1, []))  # type: ignore[arg-type]
    return [row.kl_teacher_student for row in rows if row.document == name]


def test_matched_slots_are_as_many_as_cedkv_has_and_are_judged_as_such(setting: Setting) -> None:
    experiment = setting.experiment
    states = matched(experiment, setting.slots, experiment.bank.spec.injection, "answers")
    assert states.layers == setting.anchors.layers
    assert states.slots == setting.anchors.slots
    tables = judge_states(experiment, states)
    assert len(tables.stress) == len(experiment.encoded.stress)
    assert all(math.isfinite(row.stress_delta) and row.stress_delta > 0 for row in tables.stress)
