"""What a run reads from its documents, against one document and one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.core.losses import kl_divergence
from cedkv.injection import capture, inject, observe, positions_behind
from cedkv.memory.state import States
from cedkv.train import documents
from cedkv.train.documents import WARM_START_OFF_PROMPTS, Documents, read_documents
from cedkv.train.experiment import Experiment


@pytest.fixture(scope="module", params=[(), ("data.repeat_bos=false",)], ids=["bos", "no_bos"])
def experiment(request, small_experiment) -> Experiment:
    return small_experiment(*request.param)


@pytest.fixture
def looks(monkeypatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Notes the attention, of ON and OFF prompts, from which each document's slots are planned from now on."""
    noted, plan = {}, documents.plan_slots

    def noting(name, types, on, off, **rest):
        noted[name] = on, off
        return plan(name, types, on, off, **rest)

    monkeypatch.setattr(documents, "plan_slots", noting)
    return noted


def attention_alone(experiment: Experiment, document: int, shown: tuple[int, ...], counted: int) -> Tensor:
    """[L, D] that one prompt pays to one document, by one plain pass over both."""
    context, layers = experiment.encoded.contexts[document], experiment.bank.spec.injection
    found: dict[int, Tensor] = {}
    with observe(experiment.model, layers, lambda c: found.update({c.layer: c.last_weights(counted)})):
        experiment.model(input_ids=torch.tensor([context.ids + shown]), use_cache=False)
    return torch.stack([found[layer][0, :, :, : len(context.ids)].mean((0, 1)) for layer in layers])


def read(experiment: Experiment, rows: int, teacher: list[Tensor] | None = None) -> Documents:
    said = experiment.teacher_eval if teacher is None else teacher
    layers = experiment.bank.spec.injection
    return read_documents(experiment.config, experiment.loaded, experiment.encoded, said, layers, rows=rows)


def test_looks_are_those_of_every_prompt_read_alone(experiment, looks):
    """What the plans are made from: ON training prompts with their answers, a sample of OFF prompts."""
    again, encoded = read(experiment, rows=5), experiment.encoded
    assert [a.document for a in again.atoms] == [context.id for context in encoded.contexts]
    assert again.teacher_reads == pytest.approx(experiment.teacher_reads, abs=1e-6)
    for number, context in enumerate(encoded.contexts):
        on, off = looks[context.id]
        rows = [row for row in encoded.on_train if row.document == number]
        assert on.shape[2] == len(rows)
        assert off.shape[2] == len(encoded.off_train[:WARM_START_OFF_PROMPTS])
        for p, row in enumerate(rows):
            shown = row.prompt[encoded.skipped :] + row.answer[:-1]
            wanted = attention_alone(experiment, number, shown, len(row.answer))
            torch.testing.assert_close(on[:, 0, p], wanted, atol=1e-5, rtol=0)
        for u, row in enumerate(encoded.off_train[:5]):
            wanted = attention_alone(experiment, number, row.prompt[encoded.skipped :], 1)
            torch.testing.assert_close(off[:, 0, u], wanted, atol=1e-5, rtol=0)


def test_the_largest_distance_from_the_teacher_is_that_of_prompts_one_by_one(experiment):
    """With a teacher that says something else to one prompt, so that the distance is no rounding."""
    encoded, model = experiment.encoded, experiment.model
    teacher = list(experiment.teacher_eval)
    teacher[4] = (teacher[4] * 0.9).log_softmax(-1)
    found = read(experiment, rows=3, teacher=teacher)
    distances = []
    for row, said in zip(encoded.on_eval, teacher, strict=True):
        context = encoded.contexts[row.document]
        whole = capture(model, context.id, context.ids, context.types, encoded.skipped).as_states()
        ids = torch.tensor([row.prompt[encoded.skipped :] + row.answer[:-1]])
        positions = positions_behind(model, whole, ids.shape[1], encoded.skipped)
        with torch.no_grad(), inject(model, whole):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        injected = logits[0, -len(row.answer) :].log_softmax(-1)
        distances.append(kl_divergence(said, injected).max().item())
    assert max(distances) > 1e-3
    assert found.teacher_cache_max_kl == pytest.approx(max(distances), rel=1e-3)


def test_off_prompts_that_do_not_fit_behind_a_document_count_for_nothing(experiment, looks, monkeypatch):
    """With no room at all there is nothing to hold against an anchor."""
    shortest = min(len(context.ids) for context in experiment.encoded.contexts)
    monkeypatch.setattr(type(experiment.loaded), "context_length", shortest)
    read(experiment, rows=32)
    assert len(looks) == len(experiment.encoded.contexts)
    assert all(off.shape[1] == 1 and not off.any() for _, off in looks.values())


def test_layers_without_a_common_number_of_kv_heads_are_refused_before_anything_is_learned_by_head(
    small_config,
):
    """Some families have wide and narrow layers; by layer all of them can be shared."""
    keys = {2: torch.zeros(1, 4, 5, 8), 3: torch.zeros(1, 2, 5, 8)}
    whole = States(keys, keys)
    documents._check_heads(small_config("phase3.mix.share=layer"), whole, (2, 3))
    config = small_config("phase3.mix.share=head")
    documents._check_heads(config, whole, (3,))
    with pytest.raises(
        UserError, match=r"share = head: .* kv heads \(4 at layer 2, 2 at layer 3\); share by layer"
    ):
        documents._check_heads(config, whole, (2, 3))
