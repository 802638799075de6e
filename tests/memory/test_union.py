"""States made of several: what attention says of a union, computed by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedkv.injection import inject
from cedkv.memory.state import States
from cedkv.memory.union import CLOSED, union

N, H, S, D = 4, 2, 3, 5


def states(bias: bool) -> States:
    made = torch.Generator().manual_seed(0)
    keys, values = ({i: torch.randn(N, H, S, D, generator=made) for i in (1, 2)} for _ in range(2))
    return States(
        keys, values, bias={i: torch.randn(N, 4, S, generator=made) for i in (1, 2)} if bias else None
    )


def attended(
    query: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """One query's attention over keys, values and biases of several sources, in float64."""
    keys, values, bias = (torch.cat([part[x] for part in parts]).double() for x in range(3))
    return (keys @ query.double() + bias).softmax(0) @ values


@given(
    rows=st.lists(st.lists(st.integers(0, N - 1), max_size=3, unique=True), min_size=1, max_size=4),
    bias=st.booleans(),
)
def test_a_row_attends_to_the_slots_of_all_of_its_states_and_to_no_other(rows, bias):
    """Beside its own tokens, of which there is one here."""
    one = states(bias)
    joined = union(one, rows)
    assert joined.count == len(rows)
    query, own = torch.randn(D), (torch.randn(1, D), torch.randn(1, D), torch.zeros(1))
    for r, row in enumerate(rows):
        given_ = [
            (
                one.keys[1][n, 0],
                one.values[1][n, 0],
                torch.zeros(S) if one.bias is None else one.bias[1][n, 0],
            )
            for n in row
        ]
        slots = joined.slots
        joined_bias = torch.zeros(slots) if joined.bias is None else joined.bias[1][r, 0]
        found = attended(query, [(joined.keys[1][r, 0], joined.values[1][r, 0], joined_bias), own])
        torch.testing.assert_close(found, attended(query, [*given_, own]))


def test_equal_rows_without_biases_need_none():
    assert union(states(bias=False), [[0, 1], [2, 3]]).bias is None
    assert union(states(bias=False), [[0], []]).bias is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_closed_slot_gets_nothing_in_any_type(dtype):
    """Not even one whose score is as high as scores of attention get."""
    scores = torch.tensor([0.0, 900.0], dtype=dtype) + torch.tensor([0.0, CLOSED], dtype=dtype)
    assert scores.softmax(0)[1] == 0


@pytest.mark.parametrize("rows", [[], [[4]], [[-1]]])
def test_what_cannot_be_joined_is_refused(rows):
    with pytest.raises(ValueError, match="must each name states 0 to 3"):
        union(states(bias=False), rows)


def test_an_empty_row_is_the_bare_model_but_for_rounding(model, tiny):
    """In every family of the matrix, beside a row that has a memory."""
    ids, memory = tiny.tokens(2, 9), tiny.memory(model, states=2)
    bare = model(input_ids=ids, use_cache=False).logits
    with inject(model, union(memory, [[], [0, 1]]), torch.tensor([0, 1])):
        found = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found[0], bare[0], atol=1e-5, rtol=1e-5)
    assert (found[1] - bare[1]).abs().max() > 1e-2
