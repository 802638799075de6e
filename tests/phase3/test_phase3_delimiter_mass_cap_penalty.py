"""No slot holds more than the cap on delimiters, and what it wanted beyond the cap costs `L_str`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.memory.delimiter import mass_penalty
from cedkv.memory.mixture import mix

CAP = 0.15


def steered(tiny, share: float, **settings):
    """A bank whose slots want the share `share` of their mixture on delimiters, evenly, the rest on the others."""
    bank = tiny.bank(tiny("qwen3"), **settings)
    flags = bank.is_delimiter.expand_as(bank.logits)
    real = (bank.candidates >= 0).expand_as(bank.logits)
    delimiters, others = (flags & real).sum(-1, keepdim=True), (~flags & real).sum(-1, keepdim=True)
    assert (delimiters > 0).all()
    with torch.no_grad():
        wanted = torch.where(flags, share / delimiters, (1 - share) / others)
        bank.logits.copy_(wanted.log().masked_fill(~real, -torch.inf))
    return bank


def test_the_defaults_are_the_plans(small_config):
    delimiter = small_config().phase3.candidate.delimiter
    assert (delimiter.mass_cap, delimiter.mass_penalty) == (0.15, 0.05)


@pytest.mark.parametrize("share", [0.16, 0.5, 0.99])
def test_a_slot_over_the_cap_is_scaled_to_it_in_proportion(tiny, share):
    """Delimiters by c/m, the others by (1-c)/(1-m)."""
    bank = steered(tiny, share)
    mixture = bank.mixture(8)
    flags = bank.is_delimiter.expand_as(mixture.weights)
    torch.testing.assert_close(mixture.delimiter_mass, torch.full_like(mixture.delimiter_mass, share))
    held = (mixture.weights * flags).sum(-1)
    torch.testing.assert_close(held, torch.full_like(held, CAP))
    wanted = bank.logits.softmax(-1)
    scaled = torch.where(flags, wanted * CAP / share, wanted * (1 - CAP) / (1 - share))
    torch.testing.assert_close(mixture.weights, scaled)


def test_a_slot_within_the_cap_is_left_alone(tiny):
    bank = steered(tiny, 0.1)
    torch.testing.assert_close(bank.mixture(8).weights, bank.logits.softmax(-1))


@given(
    st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=12), st.floats(0.01, 1.0), st.integers(1, 12)
)
def test_no_logits_get_past_the_cap(logits, cap, k):
    flags = torch.tensor([i % 2 == 0 for i in range(len(logits))])
    found = mix(torch.tensor(logits), k, flags, cap)
    assert found.weights[flags].sum() <= cap + 1e-6
    assert found.weights.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_the_penalty_is_the_mean_excess_before_the_cap_in_l_str(tiny):
    """After the cap nothing is in excess: a penalty on what is left would be no penalty at all."""
    bank = steered(tiny, 0.6)
    structure = bank.structure(8)
    assert structure.penalty.item() == pytest.approx(0.05 * (0.6 - CAP), rel=1e-5)
    whole = structure.entropy + structure.overlap + structure.penalty
    torch.testing.assert_close(structure.loss, whole)
    dearer = steered(tiny, 0.6, mass_penalty=0.5).structure(8)
    assert dearer.penalty.item() == pytest.approx(0.5 * (0.6 - CAP), rel=1e-5)
    torch.testing.assert_close(dearer.loss - dearer.penalty, structure.loss - structure.penalty)


def test_slots_within_the_cap_make_no_penalty_and_do_not_pay_for_others():
    mass = torch.tensor([0.1, 0.15, 0.35, 0.75])
    torch.testing.assert_close(mass_penalty(mass, CAP), torch.tensor((0.2 + 0.6) / 4))
    assert mass_penalty(mass[:2], CAP) == 0


def test_the_penalty_drives_logits_of_delimiters_down_although_the_cap_hides_them(tiny):
    bank = steered(tiny, 0.6)
    bank.structure(8).penalty.backward()
    gradient = bank.logits.grad
    flags = bank.is_delimiter.expand_as(gradient)
    assert (gradient[flags] > 0).all()
    assert (gradient[~flags] < 0).all()


def test_training_on_the_penalty_alone_brings_every_slot_under_the_cap(tiny):
    bank = steered(tiny, 0.6)
    optimiser = torch.optim.Adam([bank.logits], lr=0.1)
    for _ in range(40):
        optimiser.zero_grad()
        bank.structure(8).penalty.backward()
        optimiser.step()
    assert (bank.mixture(8).delimiter_mass <= CAP + 1e-3).all()


def test_a_cap_of_one_is_no_cap(tiny):
    bank = steered(tiny, 0.9, mass_cap=1.0)
    torch.testing.assert_close(bank.mixture(8).weights, bank.logits.softmax(-1))
    assert bank.structure(8).penalty == 0


def test_the_mass_by_type_that_is_logged_is_the_mass_after_the_cap(tiny):
    bank = steered(tiny, 0.6)
    torch.testing.assert_close(bank.type_mass(8)["delimiter"], torch.full((3, 3), CAP))


def test_no_slot_of_a_trained_memory_is_over_the_cap(train_small):
    trained = train_small()
    mixture = trained.trainer.bank.mixture(trained.outcome.k)
    flags = trained.trainer.bank.is_delimiter.expand_as(mixture.weights)
    assert ((mixture.weights * flags).sum(-1) <= CAP + 1e-6).all()
