"""Peers compute what they are said to compute: they agree with injection, and a row that does not is marked."""

from __future__ import annotations

import pytest
import torch

from cedkv.bench import learners, peers, step
from cedkv.bench.options import Options
from cedkv.bench.rows import Agreement, Row, largest_difference
from cedkv.bench.subject import check_model, load_subject
from cedkv.bench.timing import Spread
from cedkv.core.errors import UserError
from cedkv.evaluate import stress
from tests.tiny_models import TinyModels

PROMPTS = [7, 9, 7, 12]
NO_PEFT = "peft is not installed (extra: peers)"


@pytest.fixture
def prompts(tiny: TinyModels) -> list[tuple[int, ...]]:
    return [tuple(tiny.tokens(length, seed=n).tolist()) for n, length in enumerate(PROMPTS)]


def test_plain_passes_give_what_the_evaluation_gives(
    tiny: TinyModels, prompts: list[tuple[int, ...]]
) -> None:
    model = tiny("qwen2")
    states = tiny.memory(model, states=3, layers=[1, 2])
    found = peers.groups(model, prompts, 2)
    assert sorted(place for group in found for place in group.places) == [0, 1, 2, 3]
    kl = peers.plain_kl(model, states, found, batch_rows=4)
    torch.testing.assert_close(kl, stress(model, states, prompts, batch_rows=64, plain=True).kl)


@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3_text"])
def test_peft_gives_what_injection_gives_at_shifted_positions(
    tiny: TinyModels, prompts: list[tuple[int, ...]], family: str, kind: peers.Kind
) -> None:
    pytest.importorskip("peft", reason=NO_PEFT)
    model = tiny.fresh(family)
    states, found = tiny.memory(model, states=2), peers.groups(model, prompts, 4)
    peer = peers.adapter(model, kind, states.slots)
    kl = peers.peft_kl(peer, states, found)
    assert kl.min() > 1e-4
    torch.testing.assert_close(kl, peers.shifted_kl(model, states, found), atol=1e-5, rtol=1e-4)


def test_losses_and_gradients_of_all_learners_agree() -> None:
    pytest.importorskip("peft", reason=NO_PEFT)
    options = Options(model="qwen2-tiny", quick=True, repeats=1)
    section = step.step_section(load_subject(options), options)
    assert [row.name for row in section.rows] == [learners.OURS, learners.HF, *peers.CALLED.values()]
    assert all(row.agrees and row.agreement is not None for row in section.rows)
    assert all(row.extra["peak_mib"] > 0 for row in section.rows)
    assert section.summary["step_vs_peft_cartridge"] > 0


def test_without_peft_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[peers\]'.*--no-peers"):
        peers.check_peft()


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match=r"'qwen9' is neither 'embedded' nor a shape: use one of qwen2-tiny"):
        check_model("qwen9")


@pytest.mark.parametrize(("largest", "agrees"), [(1e-6, True), (1e-3, False), (float("nan"), False)])
def test_a_difference_over_the_tolerance_or_none_at_all_is_no_agreement(largest: float, agrees: bool) -> None:
    row = Row("stress", "x", "", "ms", Spread((1.0,)), Agreement("y", largest, 1e-4))
    assert row.agrees is agrees


def test_differences_are_relative_to_a_kl_over_one_nat_and_nan_shows() -> None:
    found, expected = torch.tensor([[0.5, 20.0]]), torch.tensor([[0.4, 10.0]])
    assert largest_difference(found, expected) == pytest.approx(1.0)
    assert largest_difference(torch.tensor([[0.1, torch.nan]]), expected) != 0
