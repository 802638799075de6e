"""The cap acts per slot, after top-k and renormalisation: on what is left in the slot and on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.core.schedule import topk_at
from cedkv.memory.delimiter import cap_delimiters, keep_a_non_delimiter
from cedkv.memory.mixture import mix

CAP = 0.15


def shares(*values: float) -> torch.Tensor:
    """Logits of a mixture with these weights."""
    return torch.tensor(values).log()


def test_mass_that_top_k_adds_to_delimiters_is_capped():
    """The delimiter has 0.12 of everything, within the cap, but 0.3 of the two that stay."""
    logits, flags = (
        shares(0.28, 0.12, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
        torch.tensor([False, True, *[False] * 6]),
    )
    found = mix(logits, 2, flags, CAP)
    assert found.delimiter_mass.item() == pytest.approx(0.3)
    torch.testing.assert_close(found.weights[:2], torch.tensor([0.85, 0.15]))


def test_mass_that_top_k_takes_from_delimiters_is_not_punished():
    """Six weak delimiters hold 0.3 of everything; of the three that stay none is one, so nothing is scaled."""
    logits = shares(0.3, 0.25, 0.15, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
    flags = torch.tensor([False, False, False, *[True] * 6])
    found = mix(logits, 3, flags, CAP)
    assert found.delimiter_mass == 0
    torch.testing.assert_close(found.weights[:3], torch.tensor([0.3, 0.25, 0.15]) / 0.7)


def test_capping_before_top_k_would_have_chosen_and_weighed_otherwise():
    """The stage matters: capped first, the delimiter falls out of the top 2; capped last, it stays with the cap's mass."""
    logits, flags = shares(0.5, 0.3, 0.2), torch.tensor([True, False, False])
    last = mix(logits, 2, flags, CAP).weights
    torch.testing.assert_close(last, torch.tensor([0.15, 0.85, 0.0]))
    everything = logits.softmax(-1)
    first, _ = cap_delimiters(everything, logits, flags, CAP)
    assert first.argmin() == 0
    assert not torch.allclose(last, first.topk(2).values.sum(), atol=0.1)


@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=10, unique=True), st.integers(1, 10))
def test_top_k_is_chosen_by_the_logits_alone(logits, k):
    """Whatever the cap, the chosen set is the same: the rule moves mass inside it, never in or out."""
    w = torch.tensor(logits)
    flags = torch.tensor([i % 2 == 0 for i in range(len(logits))])
    chosen = {
        cap: set(torch.nonzero(mix(w, k, flags, cap).weights).flatten().tolist()) for cap in (0.01, 0.5, 1.0)
    }
    best = set(w.topk(min(k, len(logits))).indices.tolist())
    if not all(flags[j] for j in best):
        assert chosen[0.01] == chosen[0.5] == chosen[1.0] == best


def test_a_slot_of_delimiters_only_keeps_its_best_other_in_place_of_its_weakest():
    logits, flags = (
        torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]),
        torch.tensor([True, True, True, True, False, False]),
    )
    found = mix(logits, 3, flags, CAP)
    assert torch.nonzero(found.weights).flatten().tolist() == [0, 1, 4]
    assert found.weights[4].item() == pytest.approx(1 - CAP)
    torch.testing.assert_close(found.weights[:2], CAP * logits[:2].softmax(-1))


def test_a_slot_with_one_place_and_a_delimiter_first_takes_the_best_other():
    found = mix(torch.tensor([9.0, 1.0, 2.0]), 1, torch.tensor([True, False, False]), CAP)
    assert found.weights.tolist() == [0.0, 0.0, 1.0]


def test_a_slot_that_has_another_keeps_its_choice():
    selected = torch.tensor([[True, True, False], [True, False, False]])
    logits, flags = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, False])
    kept = keep_a_non_delimiter(selected, logits.expand(2, 3), flags.expand(2, 3))
    assert kept.tolist() == [[True, True, False], [False, True, False]]


def test_each_slot_is_capped_by_itself_not_by_the_mean_of_all():
    """One slot over the cap, one far under it: their mean is within it, and the first is scaled all the same."""
    logits = torch.stack([shares(0.2, 0.4, 0.4), shares(0.02, 0.49, 0.49)])
    flags = torch.tensor([True, False, False]).expand(2, 3)
    found = mix(logits, 3, flags, CAP)
    torch.testing.assert_close(found.weights[:, 0], torch.tensor([0.15, 0.02]))
    torch.testing.assert_close(found.weights[1], logits[1].exp())


def test_the_rule_holds_at_every_stage_of_the_schedule(tiny):
    """32, 16, 8, 4: fewer candidates, another mass, the same cap."""
    bank = tiny.bank(tiny("qwen3"), pool=17)
    with torch.no_grad():
        noise = torch.randn(bank.logits.shape, generator=torch.Generator().manual_seed(0))
        bank.logits.copy_(noise + 2.0 * bank.is_delimiter)
    masses = []
    for progress in (0.0, 0.25, 0.6, 0.85):
        k = topk_at(progress, (32, 16, 8, 4), (0.0, 0.25, 0.6, 0.85))
        mixture = bank.mixture(k)
        held = (mixture.weights * bank.is_delimiter).sum(-1)
        assert (held <= CAP + 1e-6).all()
        assert ((mixture.weights > 0).sum(-1) <= k).all()
        masses.append(mixture.delimiter_mass)
    assert (masses[-1] - masses[0]).abs().max() > 0.05


def test_there_is_no_other_stage(small_config):
    assert small_config().phase3.candidate.delimiter.apply_stage == "post_topk_renorm_per_slot"
    with pytest.raises(UserError, match=r"phase3\.candidate\.delimiter\.apply_stage"):
        small_config("phase3.candidate.delimiter.apply_stage=pre_topk")
