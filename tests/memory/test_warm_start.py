"""Anchors and candidates, on attention that is made up so that the right choice is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.ledger import ATOM_TYPES
from cedkv.memory.warm_start import SlotPlan, choose_anchors, choose_candidates, plan_slots, steered_attention

TOKENS = 24


def types_of(**positions: list[int]) -> tuple[str | None, ...]:
    """`content`, but for the positions named otherwise; position 0 is special."""
    types: list[str | None] = [None, *["content"] * (TOKENS - 1)]
    for kind, where in positions.items():
        for position in where:
            types[position] = kind
    return tuple(types)


def looks(*targets: tuple[int, float], floor: float = 0.001) -> torch.Tensor:
    """[1, 1, prompts, TOKENS]: prompt p looks at the position of the p-th target with its weight."""
    attention = torch.full((1, 1, len(targets), TOKENS), floor)
    for prompt, (position, weight) in enumerate(targets):
        attention[0, 0, prompt, position] = weight
    return attention


def plan(on: torch.Tensor, off: torch.Tensor | None = None, **changes) -> SlotPlan:
    settings = {"slots": 3, "pool_size": 8, "atom_types": ATOM_TYPES, "anti_steer_strength": 0.2}
    types = changes.pop("types", types_of())
    nowhere = torch.zeros_like(on[:, :, :1])
    return plan_slots("tale", types, on, nowhere if off is None else off, **settings | changes)


# ----------------------------------------------------------------------------------------------------------- anchors
def test_each_fact_gets_an_anchor_however_loud_one_of_them_is():
    on = looks(*[(5, 0.9)] * 10, (11, 0.3), (17, 0.2))
    assert sorted(plan(on).anchors.flatten().tolist()) == [5, 11, 17]
    # Summed attention alone would have spent the slots on the loud fact's neighbours.
    on[0, 0, :10, 6:8] = 0.5
    assert sorted(plan(on).anchors.flatten().tolist()) == [5, 11, 17]


def test_anchors_come_in_the_order_of_what_they_add():
    assert plan(looks((5, 0.2), (11, 0.9), (17, 0.5))).anchors.flatten().tolist() == [11, 17, 5]


def test_when_every_prompt_is_served_the_rest_go_to_the_best_scored():
    on = looks((5, 0.9), (5, 0.9))
    on[0, 0, :, 9], on[0, 0, :, 13] = 0.5, 0.3
    assert plan(on).anchors.flatten().tolist() == [5, 9, 13]


def test_off_attention_moves_an_anchor_away():
    """Two atoms tell the same fact; OFF prompts look at the better one, too."""
    on = looks((5, 0.9))
    on[0, 0, 0, 6] = 0.8
    off = looks((5, 1.0), (5, 1.0))
    assert plan(on, off, slots=1, anti_steer_strength=0.0).anchors.flatten().tolist() == [5]
    assert plan(on, off, slots=1, anti_steer_strength=0.2).anchors.flatten().tolist() == [6]
    assert plan(on, looks((7, 1.0)), slots=1, anti_steer_strength=0.2).anchors.flatten().tolist() == [5]


def test_steering_takes_the_mean_off_attention_times_its_strength():
    on, off = torch.tensor([[0.5, 0.3], [0.1, 0.9]]), torch.tensor([[0.2, 0.0], [0.4, 0.2]])
    wanted = torch.tensor([[0.5 - 0.5 * 0.3, 0.3 - 0.5 * 0.1], [0.1 - 0.5 * 0.3, 0.9 - 0.5 * 0.1]])
    torch.testing.assert_close(steered_attention(on, off, 0.5), wanted)


def test_neither_special_tokens_nor_delimiters_nor_excluded_types_become_anchors():
    types = types_of(delimiter=[5], number=[6])
    on = looks((0, 1.0), (5, 0.9), (6, 0.8), (7, 0.5))
    chosen = plan(on, types=types, slots=2, atom_types=("content", "delimiter")).anchors.flatten().tolist()
    assert 7 in chosen
    assert not {0, 5, 6} & set(chosen)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_anchors_are_distinct_and_allowed_whatever_the_attention(seed, slots):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(5, TOKENS, generator=generator)
    allowed = torch.rand(TOKENS, generator=generator) < 0.4
    allowed[:slots] = True
    chosen = choose_anchors(score, allowed, slots).tolist()
    assert len(set(chosen)) == slots
    assert all(allowed[position] for position in chosen)


def test_the_layer_that_looked_at_the_anchor_most_is_recorded():
    low, high = looks((5, 0.9), (11, 0.1)), looks((5, 0.2), (11, 0.8))
    found = plan(torch.cat([low, high]), slots=2)
    assert dict(zip(found.anchors[0, 0].tolist(), found.layers.tolist(), strict=True)) == {5: 0, 11: 1}


def test_layers_and_heads_that_look_elsewhere_have_anchors_of_their_own():
    """A name's letters are read by different heads: one anchor for all is a compromise, one for each is none."""
    parts = [looks((5, 0.9)), looks((9, 0.8)), looks((13, 0.7)), looks((17, 0.6))]
    on = torch.cat(
        [torch.cat(parts[:2], 1), torch.cat(parts[2:], 1)]
    )  # [2 layers, 2 heads, 1 prompt, TOKENS]
    assert plan(on, slots=1, share="shared").anchors.tolist() == [[[5]]]
    assert plan(on, slots=1, share="layer").anchors.tolist() == [[[5]], [[13]]]
    found = plan(on, slots=1, share="head")
    assert found.anchors.tolist() == [[[5], [9]], [[13], [17]]]
    assert torch.equal(found.candidates[..., 0], found.anchors)
    off = torch.zeros_like(on)
    off[1, 1, 0, 17] = 1.0  # steers that head only
    on[1, 1, 0, 6] = 0.5
    assert plan(on, off, slots=1, share="head").anchors.tolist() == [[[5], [9]], [[13], [6]]]


# -------------------------------------------------------------------------------------------------------- candidates
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from(["shared", "layer", "head"]),
)
def test_candidates_begin_with_the_anchor_are_distinct_and_never_special(seed, pool_size, slots, share):
    generator = torch.Generator().manual_seed(seed)
    kinds = [None, "content", "delimiter", "number"]
    drawn = torch.randint(0, 4, (TOKENS,), generator=generator).tolist()
    types = (None, *["content"] * 6, *(kinds[i] for i in drawn))[:TOKENS]
    on = torch.rand(2, 3, 4, TOKENS, generator=generator)
    off = torch.rand(2, 3, 3, TOKENS, generator=generator)
    found = plan(on, off, types=types, slots=slots, pool_size=pool_size, share=share)
    own = {"shared": (1, 1), "layer": (2, 1), "head": (2, 3)}[share]
    assert found.candidates.shape == found.prior.shape == (*own, slots, pool_size)
    torch.testing.assert_close(found.prior.sum(-1), torch.ones(*own, slots))
    for anchor, row, prior in zip(
        found.anchors.flatten().tolist(),
        found.candidates.flatten(0, 2).tolist(),
        found.prior.flatten(0, 2),
        strict=True,
    ):
        real = [position for position in row if position >= 0]
        assert row == real + [-1] * (pool_size - len(real))
        assert len(real) == min(pool_size, sum(t is not None for t in types))
        assert row[0] == anchor
        assert len(set(real)) == len(real)
        assert all(types[position] is not None for position in real)
        assert any(types[position] != "delimiter" for position in real)
        assert (prior[len(real) :] == 0).all()
        assert (prior[: len(real)] > 0).all()
        assert prior[0] >= 0.9 - 1e-6  # training starts near the anchors that Phase 2 evaluates


def test_half_of_the_pool_are_neighbours_and_half_the_best_scored():
    total = torch.zeros(TOKENS)
    total[[1, 2, 20]] = torch.tensor([0.3, 0.2, 0.9])
    candidates, prior = choose_candidates(12, total, torch.ones(TOKENS, dtype=torch.bool), 6)
    assert candidates[:3].tolist() == [12, 11, 13]
    assert candidates[3:].tolist() == [20, 1, 2]
    assert prior[3] > prior[4] > prior[5] > prior[1]


def test_a_slot_ranks_candidates_by_the_prompts_it_serves():
    """The second fact's companion matters to the second slot and not to the first."""
    on = looks((3, 0.9), (20, 0.9))
    on[0, 0, 0, 8], on[0, 0, 1, 14] = 0.5, 0.5
    found = plan(on, slots=2, pool_size=4)
    by_anchor = dict(zip(found.anchors[0, 0].tolist(), found.candidates[0, 0].tolist(), strict=True))
    assert by_anchor[3][2] == 8
    assert by_anchor[20][2] == 14


# ---------------------------------------------------------------------------------------------------------- refusals
def test_a_document_of_delimiters_is_refused_with_the_types_that_were_allowed():
    types = (None, *["delimiter"] * (TOKENS - 1))
    with pytest.raises(
        UserError, match=r"document 'tale' has no candidate atom that is not a delimiter .*content"
    ):
        plan(looks((5, 0.9)), types=types)
    with pytest.raises(UserError, match=r"atom types allowed: number, delimiter\): give it text with words"):
        plan(looks((5, 0.9)), atom_types=("number", "delimiter"))


def test_a_document_with_fewer_words_than_slots_is_refused():
    types = types_of(delimiter=list(range(3, TOKENS)))
    message = r"has 2 candidate atoms that are no delimiters, for 3 slots: lower phase3\.memory\.slots"
    with pytest.raises(UserError, match=message):
        plan(looks((1, 0.9)), types=types)
    assert sorted(plan(looks((1, 0.9)), types=types, slots=2).anchors.flatten().tolist()) == [1, 2]
