"""A memory in somebody's program: whatever way the model is called, it is the logged memory that answers."""

from __future__ import annotations

import json
import shutil
from threading import Thread

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline

from cedkv.api import Memory
from cedkv.core.errors import UserError
from cedkv.injection import inject

GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def memory(logged) -> Memory:
    return Memory.load(logged.folder)


@pytest.fixture(scope="module")
def model(small_model):
    """As a user loads it: by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(small_model)


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return AutoTokenizer.from_pretrained(small_model)


def ids_of(rows: int = 1, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, **inputs).logits


# ------------------------------------------------------------------------------------------------ what is attached
def test_the_attached_memory_is_what_the_run_trained(memory, model, logged):
    """The slots that training injected, read from the run's own file."""
    from safetensors.torch import load_file

    stored, ids = load_file(logged.folder / "memory.safetensors"), ids_of(2)
    for n, name in enumerate(memory.documents):
        with memory.attach(model, name):
            found = logits(model, ids)
        states = memory.states.select(torch.tensor([n]))
        assert all(torch.equal(states.keys[i][0], stored[f"keys.{i}"][n]) for i in states.layers)
        with inject(model, states):
            assert torch.equal(logits(model, ids), found)
    assert (found - logits(model, ids)).abs().max() > 1e-3


def test_leaving_the_block_leaves_the_bare_model(memory, model):
    ids = ids_of()
    bare = logits(model, ids)
    with memory.attach(model, memory.documents[0]):
        assert not torch.equal(logits(model, ids), bare)
    assert torch.equal(logits(model, ids), bare)
    with pytest.raises(IndexError), memory.attach(model, memory.documents[0]):
        logits(model, ids + 10_000)  # no such tokens
    assert torch.equal(logits(model, ids), bare)
    with memory.attach(model, None):
        assert torch.equal(logits(model, ids), bare)


def test_rows_of_a_batch_have_their_own_states_or_none(memory, model):
    first, second, third = memory.documents
    chosen = [third, None, (first, second), first]
    ids = ids_of(4)
    with memory.attach(model, rows=chosen):
        together = logits(model, ids)
    for row, state in enumerate(chosen):
        with memory.attach(model, state):
            torch.testing.assert_close(
                together[row], logits(model, ids[row : row + 1])[0], atol=1e-5, rtol=1e-5
            )
    with memory.attach(model, rows=[None] * 4):
        assert torch.equal(logits(model, ids), logits(model, ids))


def test_several_states_are_the_union_of_their_slots(memory, model):
    """Attention does not know an order of slots: the union of two is the same either way, and no one of them."""
    first, second, _ = memory.documents
    ids, found = ids_of(), {}
    for names in ((first, second), (second, first), (first,), (second,)):
        with memory.attach(model, names):
            found[names] = logits(model, ids)
    torch.testing.assert_close(found[first, second], found[second, first], atol=1e-5, rtol=1e-5)
    for alone in ((first,), (second,)):
        assert (found[first, second] - found[alone]).abs().max() > 1e-4


# -------------------------------------------------------------------------------------------- how the model is called
def by_hand(model, ids, steps: int = 6):
    """Greedy continuation without a cache."""
    for _ in range(steps):
        ids = torch.cat([ids, logits(model, ids, use_cache=False)[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_generating_with_any_cache_is_generating_without(memory, model, cache):
    how = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    ids, chosen = ids_of(2), [memory.documents[1], memory.documents[0]]
    with memory.attach(model, rows=chosen):
        wanted = by_hand(model, ids)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **how)
    assert torch.equal(found, wanted)
    assert not torch.equal(by_hand(model, ids), wanted)


def test_beams_and_several_returned_sequences_keep_their_prompts_state(memory, model):
    ids, chosen = ids_of(2), [memory.documents[2], memory.documents[0]]
    how = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    with memory.attach(model, rows=chosen):
        together = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    for row, state in enumerate(chosen):
        with memory.attach(model, state):
            alone = model.generate(ids[row : row + 1], attention_mask=torch.ones_like(ids[:1]), **how)
        assert torch.equal(together[2 * row : 2 * row + 2], alone)


def test_sampling_draws_from_what_the_memory_says(memory, model):
    ids, draws = ids_of(), 64
    how = GREEDY | {"do_sample": True, "top_k": 0, "num_return_sequences": draws}

    def drawn_by_hand():
        torch.manual_seed(5)
        found = ids.repeat(draws, 1)
        for _ in range(GREEDY["max_new_tokens"]):
            odds = logits(model, found, use_cache=False)[:, -1].softmax(-1)
            found = torch.cat([found, torch.multinomial(odds, 1)], dim=1)
        return found

    with memory.attach(model, memory.documents[0]):
        wanted = drawn_by_hand()
        torch.manual_seed(5)
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **how), wanted)
    assert not torch.equal(drawn_by_hand(), wanted)


def test_padding_on_the_left_changes_nothing(memory, model):
    ids, mask = ids_of(2, 9), torch.ones(2, 9, dtype=torch.long)
    ids[1, :4], mask[1, :4] = 0, 0
    chosen = [memory.documents[0], memory.documents[2]]
    with memory.attach(model, rows=chosen):
        together = model.generate(ids, attention_mask=mask, **GREEDY)
    with memory.attach(model, chosen[1]):
        alone = model.generate(ids[1:, 4:], attention_mask=mask[1:, 4:], **GREEDY)
    assert torch.equal(together[1, -6:], alone[0, -6:])


def test_pipelines_answer_with_the_memory(memory, model, tokenizer):
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "Question: Who keeps bees?"
    how = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    with memory.attach(model, memory.documents[0]):
        (found,) = ask(prompt, **how)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        wanted = tokenizer.decode(by_hand(model, ids)[0, ids.shape[1] :])
    assert found["generated_text"] == wanted
    assert ask(prompt, **how) != [found]


def test_a_stream_out_of_a_thread_is_with_the_memory_also_when_the_block_is_left(memory, model, tokenizer):
    ids = ids_of()
    with memory.attach(model, memory.documents[0]) as attached:
        wanted = tokenizer.decode(by_hand(model, ids, 40)[0, ids.shape[1] :])
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        how = GREEDY | {"max_new_tokens": 40, "streamer": streamer, "attention_mask": torch.ones_like(ids)}
        thread = Thread(target=attached.bind(model.generate), args=(ids,), kwargs=how)
        thread.start()
    found = "".join(streamer)
    thread.join()
    assert found == wanted


def test_half_precision_is_injected_in_its_own_type(memory, small_model):
    half = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    with memory.attach(half, memory.documents[0], check=False):
        found = logits(half, ids_of())
    assert found.dtype is torch.bfloat16
    assert bool(found.isfinite().all())
    assert not torch.equal(found, logits(half, ids_of()))


# -------------------------------------------------------------------------------------------------------- refusals
def test_names_are_checked(memory, model):
    for given, told in (
        ({"state": "nobody"}, "'nobody' is no document of this memory"),
        ({"state": [memory.documents[0]] * 2}, "name one twice"),
        ({"state": memory.documents[0], "rows": [None]}, "both `state` and `rows`"),
    ):
        with pytest.raises(UserError, match=told), memory.attach(model, **given):
            pass


def test_a_wrong_number_of_rows_is_told(memory, model):
    with (
        pytest.raises(ValueError, match="names a state for each of 2 prompts, but the batch has 3 rows"),
        memory.attach(model, rows=[memory.documents[0], None]),
    ):
        logits(model, ids_of(3))


def test_another_model_is_refused_with_what_differs(memory, small_model, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float16)
    with pytest.raises(UserError, match="its type is float32, this one's float16"):
        memory.check(half)
    other = AutoModelForCausalLM.from_pretrained(small_model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(
        UserError, match=r"another model .*: its weights are others\. Load that model"
    ) as error:
        memory.check(other)
    assert "setting" not in str(error.value)
    folder = shutil.copytree(small_model, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"its rms_norm_eps is 1e-06, this one's 0\.001") as error:
        memory.check(AutoModelForCausalLM.from_pretrained(folder))
    assert "weights are others" not in str(error.value)


def test_a_weight_that_is_written_to_after_the_first_check_is_noticed(memory, small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model)
    memory.check(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    with pytest.raises(UserError, match="its weights are others"):
        memory.check(model)


def test_another_tokenizer_is_refused(memory, model, tokenizer, small_model):
    tokenizer(
        ["a", "a b"], padding=True, truncation=True, max_length=4
    )  # what calls leave behind is not looked at
    memory.check(model, tokenizer)
    other = AutoTokenizer.from_pretrained(small_model)
    other.add_tokens(["zyx"])
    with pytest.raises(UserError, match="another tokenizer"):
        memory.check(model, other)


def test_a_model_without_the_memorys_layers_is_refused_even_unchecked(memory, tiny):
    with (
        pytest.raises(UserError, match=r"slots for layers \[3\], but attention layers of this qwen3"),
        memory.attach(tiny("qwen3"), memory.documents[0], check=False),
    ):
        pass


def test_what_is_no_memory_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no memory\.json"):
        Memory.load(tmp_path)
