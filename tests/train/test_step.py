"""The three losses against what they are by definition, computed prompt by prompt and state by state."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cedkv.injection import inject
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.train.step import Weights, loss_terms, off_loss, on_loss, weighed

K = 5


@pytest.fixture
def experiment(small_experiment):
    return small_experiment()


def log_probs(experiment, prompt, state: int | None, answer=()) -> Tensor:
    """Log-probabilities [A or 1, V] behind a prompt, alone in its batch, in float64; `state` is injected if given."""
    ids = torch.tensor([prompt + tuple(answer[:-1])])
    states = None if state is None else experiment.bank.states(K, torch.tensor([state]))
    with inject(experiment.model, states):
        logits = experiment.model(input_ids=ids, use_cache=False).logits[0]
    return logits[-max(1, len(answer)) :].double().log_softmax(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.fixture
def asked(experiment):
    """ON prompts of three documents with answers of one to four tokens, and what the teacher says at those tokens."""
    longer = {0: (), 10: (300, 301, 302), 3: (400,), 26: (), 11: (500, 501)}
    batch = [replace(row, answer=row.answer + more) for row, more in _picked(experiment, longer)]
    assert {row.document for row in batch} == {0, 1, 2}
    assert [len(row.answer) for row in batch] == [1, 4, 2, 1, 3]
    teacher = []
    for row in batch:
        behind = experiment.encoded.contexts[row.document].ids + row.prompt[experiment.encoded.skipped :]
        teacher.append(log_probs(experiment, behind, None, row.answer))
    return batch, teacher


def _picked(experiment, longer):
    return [(experiment.encoded.on_train[i], more) for i, more in longer.items()]


@pytest.fixture(params=list(Shortcut), ids=lambda shortcut: shortcut.name.lower())
def kept(experiment, request):
    """Makes a trunk of prompts, by each shortcut."""

    def make(prompts, keep=None):
        first = experiment.bank.spec.injection[0]
        trunk = Trunk(experiment.model, prompts, first, shortcut=request.param, keep=keep)
        return trunk.take(range(len(prompts)))

    return make


def with_answers(kept, batch):
    return kept([row.prompt + row.answer[:-1] for row in batch], [len(row.answer) for row in batch])


def test_on_loss_is_the_mean_divergence_of_the_student_from_the_teacher(experiment, asked, kept):
    """Each prompt counts once, however long its answer."""
    batch, teacher = asked
    loss, mass = on_loss(
        experiment.model,
        experiment.bank,
        K,
        batch,
        with_answers(kept, batch),
        teacher=[t.float() for t in teacher],
        kind="kl",
    )
    direct = [
        divergence(reads, log_probs(experiment, row.prompt, row.document, row.answer)).mean()
        for row, reads in zip(batch, teacher, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(direct).item() / 5, rel=1e-4)
    assert loss.item() > 0.1
    assert 0 < mass < 1


def test_on_loss_may_be_the_answers_negative_log_likelihood(experiment, asked, kept):
    batch, teacher = asked
    prompts = with_answers(kept, batch)
    loss, _ = on_loss(
        experiment.model, experiment.bank, K, batch, prompts, teacher=teacher, kind="answer_nll"
    )
    direct = [
        -log_probs(experiment, row.prompt, row.document, row.answer)[
            range(len(row.answer)), row.answer
        ].mean()
        for row in batch
    ]
    assert loss.item() == pytest.approx(sum(direct).item() / 5, rel=1e-4)


@pytest.mark.parametrize("tail_fraction", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("batch_rows", [2, 64])
def test_off_loss_and_its_gradient_are_those_of_cvar_over_the_worst_of_all_states(
    experiment, kept, tail_fraction, batch_rows
):
    """By the definition: every prompt under every state with gradients, the maximum, then the mean of the worst."""
    bank = experiment.bank
    prompts = [row.prompt for row in experiment.encoded.off_train[:7]]
    loss, mass = off_loss(
        experiment.model, bank, K, kept(prompts), tail_fraction=tail_fraction, batch_rows=batch_rows
    )
    loss.backward()
    found, bank.logits.grad = bank.logits.grad.clone(), None
    everything = torch.stack(
        [
            torch.cat(
                [divergence(log_probs(experiment, p, n), log_probs(experiment, p, None)) for n in range(3)]
            )
            for p in prompts
        ]
    )
    worst = everything.amax(1).sort(descending=True).values
    weights = (7 * tail_fraction - torch.arange(7)).clamp(0, 1)
    direct = (worst * weights).sum() / (7 * tail_fraction)
    direct.backward()
    assert len(set(everything.argmax(1).tolist())) > 1
    assert loss.item() == pytest.approx(direct.item(), rel=1e-4)
    torch.testing.assert_close(found, bank.logits.grad, rtol=1e-3, atol=1e-7)
    assert found.abs().max() > 1e-4
    assert 0 < mass < 1


def test_structure_loss_is_entropy_plus_overlap_plus_the_delimiter_penalty(experiment):
    bank = experiment.bank
    with torch.no_grad():
        # Four times the prior's differences, and delimiters well above the cap.
        bank.logits.mul_(0.25).add_(2.0 * bank.is_delimiter)
    loss = bank.structure(K).loss.item()
    weights = bank.mixture(K).weights[:, 0, 0].tolist()
    entropies, overlaps, over = [], [], []
    for n in range(3):
        atoms = []
        for s in range(3):
            p = weights[n][s]
            entropies.append(-sum(w * math.log(w) for w in p if w > 0))
            placed = dict.fromkeys(bank.candidates[n].flatten().tolist(), 0.0)
            for j, w in zip(bank.candidates[n, 0, 0, s].tolist(), p, strict=True):
                placed[j] += w
            atoms.append(placed)
            over.append(max(0.0, _uncapped_delimiter_mass(bank, n, s) - 0.15))
        for a in range(3):
            for b in range(a):
                dot = sum(atoms[a][j] * atoms[b][j] for j in atoms[a])
                norms = [math.sqrt(sum(w * w for w in atoms[x].values())) for x in (a, b)]
                overlaps.append(dot / math.prod(norms))
    mean = [sum(values) / len(values) for values in (entropies, overlaps, over)]
    assert mean[2] > 0
    assert loss == pytest.approx(mean[0] + mean[1] + 0.05 * mean[2], rel=1e-5)


def _uncapped_delimiter_mass(bank, n: int, s: int) -> float:
    logits = bank.logits[n, 0, 0, s].tolist()
    flags = bank.is_delimiter[n, 0, 0, s].tolist()
    top = sorted(range(len(logits)), key=lambda j: -logits[j])[:K]
    assert not all(flags[j] for j in top)
    total = sum(math.exp(logits[j]) for j in top)
    return sum(math.exp(logits[j]) for j in top if flags[j]) / total


def terms(experiment, *, on=range(4), off=range(4)):
    return loss_terms(
        experiment.model,
        experiment.bank,
        K,
        on=[experiment.encoded.on_train[i] for i in on],
        on_prompts=experiment.on.take(on),
        teacher=[experiment.teacher_train[i] for i in on],
        on_kind="kl",
        off=experiment.off.take(off),
        tail_fraction=0.5,
        batch_rows=64,
    )


def test_the_total_is_the_weighted_sum_and_so_is_its_gradient(experiment):
    logits = experiment.bank.logits
    found = terms(experiment)
    parts = {name: getattr(found, name) for name in ("on", "off", "structure")}
    gradients = {
        name: torch.autograd.grad(part, logits, retain_graph=True)[0] for name, part in parts.items()
    }
    total = found.total(Weights(on=1.5, off=2.5, structure=0.25))
    weight = {"on": 1.5, "off": 2.5, "structure": 0.25}
    assert total.item() == pytest.approx(sum(weight[n] * part.item() for n, part in parts.items()))
    together = sum(weight[name] * gradient for name, gradient in gradients.items())
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], together)


def test_gradients_reach_the_mixture_logits_and_nothing_else(experiment):
    before = {name: p.clone() for name, p in experiment.model.named_parameters()}
    terms(experiment).total(Weights(1.0, 2.0, 0.1)).backward()
    assert [name for name, _ in experiment.bank.named_parameters()] == ["logits"]
    assert experiment.bank.logits.grad.isfinite().all()
    assert experiment.bank.logits.grad.abs().max() > 0
    for name, parameter in experiment.model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert not any(buffer.requires_grad for buffer in experiment.bank.buffers())


def test_candidates_outside_the_top_k_get_no_gradient(experiment):
    terms(experiment).total(Weights(1.0, 2.0, 0.1)).backward()
    unused = experiment.bank.mixture(K).weights == 0
    assert unused.any()
    assert (experiment.bank.logits.grad[unused] == 0).all()


def test_an_on_prompt_moves_its_own_document_only(experiment):
    rows = [i for i, row in enumerate(experiment.encoded.on_train) if row.document == 1][:3]
    loss, _ = on_loss(
        experiment.model,
        experiment.bank,
        K,
        [experiment.encoded.on_train[i] for i in rows],
        experiment.on.take(rows),
        teacher=[experiment.teacher_train[i] for i in rows],
        kind="kl",
    )
    gradient = torch.autograd.grad(loss, experiment.bank.logits)[0].abs().amax((1, 2, 3, 4))
    assert (gradient > 0).tolist() == [False, True, False]


@pytest.mark.parametrize("weight", [1.0, 1e-7])
def test_through_a_float16_model_a_small_loss_has_its_gradient_and_a_large_one_too(experiment, weight):
    """Without a scale, what is under 6e-8 at the logits would be lost on its way down."""
    half = deepcopy(experiment.model).half()
    rows = list(range(6))
    batch = [experiment.encoded.on_train[i] for i in rows]
    found = {}
    for model in (experiment.model, half):
        bank = deepcopy(experiment.bank).to(model.dtype)
        bank.logits.data = experiment.bank.logits.detach().float()
        first = bank.spec.injection[0]
        prompts = [row.prompt + row.answer[:-1] for row in batch]
        trunk = Trunk(model, prompts, first, shortcut=Shortcut.TRUNK, keep=[len(row.answer) for row in batch])
        documents = torch.tensor([row.document for row in batch])
        teacher = torch.cat([experiment.teacher_train[i] for i in rows])

        def score(packed, student, teacher=teacher):
            return divergence(teacher[packed.member].float(), student.float())

        result = weighed(
            model,
            bank,
            K,
            trunk.take(range(6)),
            documents=documents,
            weights=torch.full((6,), weight),
            score=score,
            rows=2,
        )
        found[model.dtype] = torch.autograd.grad(result.total, bank.logits)[0]
    exact, ours = found[torch.float32], found[torch.float16].float()
    assert exact.abs().max() > 0
    assert (ours - exact).norm() < 0.02 * exact.norm()
