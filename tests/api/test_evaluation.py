"""Prompts of one's own: the numbers are those a run would log, and the bound is the gates' bound."""

from __future__ import annotations

import pytest

from cedkv.api import Memory, evaluate
from cedkv.core.errors import UserError
from cedkv.tracking.reader import read_run


@pytest.fixture(scope="module")
def memory(logged):
    return Memory.load(logged.folder)


def test_the_runs_own_prompts_give_the_runs_own_numbers(logged, memory, loaded):
    record = read_run(logged.run_id, logged.uri)
    on = [(row.document, row.prompt, row.answer) for row in record.on_table]
    off = [row.prompt for row in record.stress_table]
    found = evaluate(memory, loaded.model, loaded.tokenizer, on=on, off=off)
    for name in ("on_gain", "on_acc_base", "on_acc_student", "on_logp_gain"):
        assert found.metrics[name] == pytest.approx(record.metrics[name], abs=1e-6)
    for name in ("off_delta_p99_stress", "off_delta_max_stress", "off_delta_mean_stress"):
        assert found.metrics[name] == pytest.approx(record.metrics[name], rel=1e-4, abs=1e-7)
    assert [row.prompt for row in found.off] == off
    assert [row.state for row in found.off] == [row.state for row in record.stress_table]


def test_more_states_never_move_a_prompt_less(memory, loaded):
    """The stress of a prompt is the largest over states; a union is a state of its own."""
    off = ["Count to three.", "Name a colour.", "Is it late?"]
    first, second, _ = memory.documents
    one = evaluate(memory, loaded.model, loaded.tokenizer, off=off, states=[first])
    both = evaluate(memory, loaded.model, loaded.tokenizer, off=off, states=[first, second])
    union = evaluate(memory, loaded.model, loaded.tokenizer, off=off, states=[(first, second)])
    for few, more in zip(one.off, both.off, strict=True):
        assert more.stress_delta >= few.stress_delta - 1e-7
    assert {row.state for row in union.off} == {f"{first} + {second}"}
    assert union.metrics["off_delta_mean_stress"] not in (
        one.metrics["off_delta_mean_stress"],
        both.metrics["off_delta_mean_stress"],
    )


def test_mistakes_are_told(memory, loaded, tiny):
    with pytest.raises(UserError, match="neither `on` nor `off`"):
        evaluate(memory, loaded.model, loaded.tokenizer)
    with pytest.raises(UserError, match="no document of this memory"):
        evaluate(memory, loaded.model, loaded.tokenizer, on=[("nobody", "a", " b")])
    with pytest.raises(UserError, match="another model"):
        evaluate(memory, tiny("qwen3"), loaded.tokenizer, off=["a"])
