"""What the teacher says is what passes over the whole of document, prompt and answer say, on every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cedkv.train import teacher
from cedkv.train.teacher import Question, ask_teacher

DOCUMENTS = (4, 20, 33, 20)
"""Tokens: shorter and longer than the windows (6), and two of one length."""

_SMALL = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}
OTHERS = {
    "opt": _SMALL
    | {"ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.2},
    "qwen2_moe": _SMALL
    | _EXPERTS
    | {"intermediate_size": 48, "shared_expert_intermediate_size": 16, "initializer_range": 0.2},
    "qwen3_next": _SMALL
    | _EXPERTS
    | {"intermediate_size": 48, "shared_expert_intermediate_size": 16, "head_dim": 8}
    | {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
CANNOT = {"qwen3_next"}
"""Layers that are no attention keep a state that cannot be repeated for several prompts."""


@pytest.fixture(scope="module")
def documents(tiny) -> list[tuple[int, ...]]:
    return [tuple(tiny.tokens(n, seed=i).tolist()) for i, n in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def questions(tiny) -> list[Question]:
    """24 of them, prompts of 1 to 9 tokens, answers of 1 to 3, over the documents in turn."""
    return [
        Question(
            i % len(DOCUMENTS),
            tuple(tiny.tokens(1 + 5 * i % 9, seed=50 + i).tolist()),
            tuple(tiny.tokens(1 + i % 3, seed=90 + i).tolist()),
        )
        for i in range(24)
    ]


def alone(model, documents, question: Question) -> Tensor:
    """The answer's log-probabilities by one pass over this question only, nothing padded and nothing kept."""
    text = documents[question.document] + question.prompt + question.answer[:-1]
    logits = model(input_ids=torch.tensor([text]), use_cache=False).logits
    return logits[0, -len(question.answer) :].log_softmax(-1)


def assert_whole(model, documents, questions, found) -> None:
    assert len(found.answers) == len(questions)
    for question, answer in zip(questions, found.answers, strict=True):
        torch.testing.assert_close(answer, alone(model, documents, question), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_documents_read_once_are_documents_read_for_every_prompt(model, documents, questions, rows):
    found = ask_teacher(model, documents, questions, rows=rows)
    assert found.cached
    assert 0 < found.error < teacher.TOLERANCE
    assert_whole(model, documents, questions, found)


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_come_out_right_whether_their_cache_can_or_not(tiny, documents, questions, family):
    """Learned positions, experts, and layers without attention."""
    model = tiny.fresh(family, **OTHERS[family])
    found = ask_teacher(model, documents, questions, rows=8)
    assert found.cached == (family not in CANNOT)
    assert (found.error > 0) == found.cached
    assert_whole(model, documents, questions, found)


def wrong_by(amount: float):
    def spoil(cache):
        for layer in cache.layers:
            layer.values = layer.values + amount
        return cache

    return spoil


def broken(_):
    raise RuntimeError("no such cache")


@pytest.mark.parametrize("spoil", [wrong_by(0.01), wrong_by(float("nan")), broken])
def test_a_cache_that_is_wrong_is_not_used(tiny, documents, questions, monkeypatch, spoil):
    model = tiny("qwen3")
    monkeypatch.setattr(teacher, "deepcopy", spoil)
    found = ask_teacher(model, documents, questions, rows=8)
    assert (found.cached, found.error) == (False, 0.0)
    assert_whole(model, documents, questions, found)


def test_a_window_that_forgets_too_early_shows_in_the_probe(tiny, documents, questions, monkeypatch):
    """Only documents longer than the window are read wrongly then."""
    model = tiny("mistral")

    def forget(cache):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
            if layer.keys.shape[2] >= 5:
                layer.values[:, :, 0] = 0
        return cache

    monkeypatch.setattr(teacher, "deepcopy", forget)
    found = ask_teacher(model, documents, questions, rows=8)
    assert not found.cached
    assert_whole(model, documents, questions, found)


def test_the_tokens_of_a_document_are_computed_once(tiny, documents, monkeypatch):
    """Each document once, each prompt once (with what its row is padded by), and the probe; whole passes are many times that."""
    model, computed = tiny("gemma3_text"), []
    questions = [
        Question(i % 4, tuple(tiny.tokens(4, seed=i).tolist()), tuple(tiny.tokens(2, seed=i).tolist()))
        for i in range(80)
    ]
    probe = teacher._probe(documents, questions)
    handle = model.model.embed_tokens.register_forward_hook(
        lambda _, args, out: computed.append(args[0].numel())
    )
    try:
        assert ask_teacher(model, documents, questions, rows=16).cached
        once, computed[:] = sum(computed), []
        teacher._whole(model, documents, questions, 16)
        anew = sum(computed)
    finally:
        handle.remove()
    read = [len(documents[q.document]) + len(q.shown) for q in questions]
    assert once == sum(DOCUMENTS) + 80 * 5 + sum(read[i] for i in probe)
    assert anew >= sum(read) > 2 * once


def test_the_probe_holds_the_ends(documents, questions):
    probe = teacher._probe(documents, questions)
    read = [len(documents[q.document]) + len(q.shown) for q in questions]
    assert {min(read), max(read)} <= {read[i] for i in probe}
    assert max(len(q.prompt) for q in questions) in {len(questions[i].prompt) for i in probe}
    assert len(probe) <= teacher.PROBE + 1
    assert teacher._probe(documents, questions[:1]) == [0]


@pytest.mark.parametrize(("prompt", "answer"), [((), (3,)), ((3,), ())])
def test_a_question_without_a_token_is_refused(prompt, answer):
    with pytest.raises(ValueError, match="at least one token each"):
        Question(0, prompt, answer)


def test_half_precision_is_held_to_float32_and_to_its_own_rounding(tiny, documents, questions, monkeypatch):
    model = tiny.fresh("llama").to(torch.bfloat16)
    found = ask_teacher(model, documents, questions, rows=8)
    assert found.cached
    assert found.error < 0.1  # bfloat16 has three digits
    exact = tiny.fresh("llama")
    near = [
        (answer - alone(exact, documents, question)).abs().max().item()
        for question, answer in zip(questions, found.answers, strict=True)
    ]
    assert max(near) < 1.0
    copied = teacher.deepcopy

    def slightly_wrong(x):  # well within what bfloat16 would hide
        return wrong_by(1e-3)(copied(x)) if hasattr(x, "layers") else copied(x)

    monkeypatch.setattr(teacher, "deepcopy", slightly_wrong)
    assert not ask_teacher(model, documents, questions, rows=8).cached
