"""The bank: slots assembled from a real model's atoms, only mixture logits trained, and what `L_str` sums."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cedkv.core.errors import UserError
from cedkv.injection import inject
from cedkv.memory.bank import MemoryBank, MixSpec

SPEC = MixSpec("v_only", "shared", (1, 2), (1, 2), sink_slots=0, mass_cap=0.15, mass_penalty=0.05)


@pytest.fixture(scope="module")
def qwen3(tiny):
    return tiny("qwen3")


@pytest.fixture(scope="module")
def atoms(tiny, qwen3):
    return tiny.atoms(qwen3)


def stirred(bank: MemoryBank, seed: int = 0) -> MemoryBank:
    """The bank with random logits: mixtures that differ between slots, layers and heads."""
    with torch.no_grad():
        noise = torch.randn(bank.logits.shape, generator=torch.Generator().manual_seed(seed))
        bank.logits.copy_(torch.where(bank.logits > -torch.inf, 2 * noise, bank.logits))
    return bank


def test_the_mixture_logits_are_the_only_parameter(tiny, qwen3):
    bank = tiny.bank(qwen3)
    assert [(name, p.requires_grad) for name, p in bank.named_parameters()] == [("logits", True)]
    assert not any(buffer.requires_grad for buffer in bank.buffers())


@pytest.mark.parametrize(
    ("share", "shape"), [("shared", (3, 1, 1, 3, 8)), ("layer", (3, 2, 1, 3, 8)), ("head", (3, 2, 2, 3, 8))]
)
def test_sharing_decides_how_many_mixtures_there_are(tiny, qwen3, share, shape):
    bank = tiny.bank(qwen3, share=share)
    assert bank.logits.shape == shape
    assert bank.mixture(4).weights.shape == shape
    assert bank.states(4).keys[1].shape == (3, 2, 3, 8)  # documents, kv heads, slots, head size


SHARES = ["shared", "layer", "head"]


def of(x, share, layer, head):
    """What layer and head have of [L, H, ...], or of what all share."""
    return x[layer - 1 if share != "shared" else 0, head if share == "head" else 0]


@pytest.mark.parametrize(
    "shares", [(s, a) for s in SHARES for a in SHARES if SHARES.index(a) <= SHARES.index(s)]
)
@pytest.mark.parametrize("mode", ["v_only", "kv", "anchor"])
def test_slots_are_assembled_as_the_mode_says(tiny, qwen3, atoms, mode, shares):
    """K_s = K[anchor_s] and V_s = sum_j p_sj V_j for `v_only`; both mixed for `kv`; neither for `anchor`; slow loop."""
    share, anchors = shares
    bank = stirred(tiny.bank(qwen3, mode=mode, share=share, anchors=anchors))
    states, weights = bank.states(4), bank.mixture(4).weights.detach()
    for n, document in enumerate(atoms):
        for layer in (1, 2):
            for head in range(2):
                for s, anchor in enumerate(of(bank.anchors[n], anchors, layer, head).tolist()):
                    own = of(weights[n], share, layer, head)[s]
                    for name, mixed in (("keys", mode == "kv"), ("values", mode != "anchor")):
                        source = getattr(document, name)[layer][head]
                        wanted = source[anchor]
                        if mixed:
                            pool = of(bank.candidates[n], anchors, layer, head)[s].tolist()
                            wanted = sum(own[j] * source[c] for j, c in enumerate(pool))
                        found = getattr(states, name)[layer][n, head, s]
                        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("anchors", SHARES)
def test_layers_that_are_injected_but_not_mixed_use_the_anchors_value(tiny, qwen3, atoms, anchors):
    bank = stirred(tiny.bank(qwen3, mixture=(2,), share=anchors, anchors=anchors))
    states = bank.states(4)
    assert bank.candidates.shape[1] == 1  # of the layer that is mixed
    for n, document in enumerate(atoms):
        for head in range(2):
            first, second = (of(bank.anchors[n], anchors, layer, head) for layer in (1, 2))
            assert torch.equal(states.keys[2][n, head], document.keys[2][head, second])
            assert torch.equal(states.values[1][n, head], document.values[1][head, first])
            assert not torch.allclose(states.values[2][n, head], document.values[2][head, second], atol=1e-3)


def test_one_mixture_for_candidates_that_differ_is_refused(tiny, qwen3):
    for share, anchors in (("shared", "layer"), ("shared", "head"), ("layer", "head")):
        with pytest.raises(ValueError, match=f"mix.share '{share}' has one mixture where there are several"):
            tiny.bank(qwen3, share=share, anchors=anchors)


# ---------------------------------------------------------------------------------------------------- value residuals
@pytest.mark.parametrize("mode", ["v_only", "kv", "anchor"])
def test_a_residual_starts_as_nothing_and_is_added_to_values_of_mixed_layers_only(tiny, qwen3, mode):
    plain, bank = (
        stirred(tiny.bank(qwen3, mixture=(2,), sink_slots=1, mode=mode, share="head", value_residual=learned))
        for learned in (False, True)
    )
    before, start = plain.states(4), bank.states(4)
    assert [name for name, _ in plain.named_parameters()] == ["logits"]
    assert [name for name, _ in bank.named_parameters()] == ["logits", "residuals.2"]
    assert (plain.residual_share(4), bank.residual_share(4)) == (None, 0.0)
    for layer in (1, 2):
        assert torch.equal(start.keys[layer], before.keys[layer])
        assert torch.equal(start.values[layer], before.values[layer])
    residual = bank.residuals["2"]
    assert residual.shape == (3, 2, 3, 8)  # documents, kv heads, slots, head size
    with torch.no_grad():
        residual.normal_(generator=torch.Generator().manual_seed(3))
    rows = torch.tensor([2, 0])
    for after, wanted, added in (
        (bank.states(4), before, residual),
        (bank.states(4, rows), before.select(rows), residual[rows]),
    ):
        assert torch.equal(after.values[1], wanted.values[1])
        assert all(torch.equal(after.keys[layer], wanted.keys[layer]) for layer in (1, 2))
        assert torch.equal(after.values[2][:, :, :1], wanted.values[2][:, :, :1])  # the sink
        torch.testing.assert_close(after.values[2][:, :, 1:], wanted.values[2][:, :, 1:] + added)
    own, mixed = residual.norm(dim=-1), before.values[2][:, :, 1:].norm(dim=-1)
    assert bank.residual_share(4) == pytest.approx((own / (own + mixed)).mean().item())


def test_gradients_reach_residuals_and_move_no_key(tiny, qwen3):
    bank = tiny.bank(qwen3, value_residual=True)
    ids, rows = tiny.tokens(3, 6), torch.tensor([0, 1, 2])
    with inject(qwen3, bank.states(4), rows):
        qwen3(input_ids=ids).logits.square().sum().backward()
    for layer in ("1", "2"):
        gradient = bank.residuals[layer].grad
        assert gradient is not None
        assert (gradient.abs().amax(-1) > 0).all()  # of every document, head and slot
    keys = bank.states(4).keys
    with torch.no_grad():
        for residual in bank.residuals.values():
            residual.add_(1.0)
    assert all(torch.equal(bank.states(4).keys[layer], keys[layer]) for layer in keys)


def test_sinks_are_the_documents_first_tokens_in_front_of_the_slots(tiny, qwen3, atoms):
    plain, bank = tiny.bank(qwen3), tiny.bank(qwen3, sink_slots=2)
    states = bank.states(4)
    assert states.slots == 5
    for layer in (1, 2):
        for n, document in enumerate(atoms):
            assert torch.equal(states.keys[layer][n, :, :2], document.keys[layer][:, :2])
            assert torch.equal(states.values[layer][n, :, :2], document.values[layer][:, :2])
        assert torch.equal(states.keys[layer][:, :, 2:], plain.states(4).keys[layer])


def test_rows_pick_documents_in_any_order_and_more_than_once(tiny, qwen3):
    bank, rows = stirred(tiny.bank(qwen3)), torch.tensor([2, 0, 2])
    some, whole = bank.states(4, rows), bank.states(4)
    for layer in (1, 2):
        assert torch.equal(some.keys[layer], whole.keys[layer][rows])
        torch.testing.assert_close(some.values[layer], whole.values[layer][rows])
    torch.testing.assert_close(bank.mixture(4, rows).weights, bank.mixture(4).weights[rows])


def test_a_document_with_fewer_atoms_than_the_pool_mixes_what_it_has(tiny, qwen3):
    bank = tiny.bank(qwen3, pool=40)  # 17 atoms
    padding = bank.candidates < 0
    assert padding.any()
    loss = bank.states(40).values[2].sum() + bank.structure(40).loss
    loss.backward()
    assert bank.logits.grad is not None
    assert torch.isfinite(bank.logits.grad).all()
    torch.optim.Adam([bank.logits], lr=0.1).step()
    weights = bank.mixture(40).weights
    assert torch.isfinite(weights).all()
    assert (weights[padding] == 0).all()


def test_structure_is_entropy_overlap_and_penalty_slot_by_slot(tiny, qwen3):
    bank = stirred(tiny.bank(qwen3))
    mixture = bank.mixture(4)
    entropies, overlaps, excess = [], [], []
    for n in range(3):
        mixes = []
        for s in range(3):
            weights = mixture.weights[n, 0, 0, s].tolist()
            entropies.append(-math.fsum(w * math.log(w) for w in weights if w > 0))
            excess.append(max(0.0, mixture.delimiter_mass[n, 0, 0, s].item() - 0.15))
            mixes.append(dict(zip(bank.candidates[n, 0, 0, s].tolist(), weights, strict=True)))
        for a in range(3):
            for b in range(a):
                dot = math.fsum(w * mixes[b].get(c, 0.0) for c, w in mixes[a].items())
                sizes = [math.sqrt(math.fsum(w * w for w in mixes[i].values())) for i in (a, b)]
                overlaps.append(dot / (sizes[0] * sizes[1]))
    found = bank.structure(4)
    assert found.entropy.item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert found.overlap.item() == pytest.approx(sum(overlaps) / len(overlaps), rel=1e-4)
    assert found.penalty.item() == pytest.approx(0.05 * sum(excess) / len(excess), rel=1e-4)
    assert found.loss.item() == pytest.approx(
        found.entropy.item() + found.overlap.item() + found.penalty.item()
    )


def test_the_mass_of_every_slot_is_accounted_for_by_type(tiny, qwen3, atoms):
    bank = stirred(tiny.bank(qwen3))
    mass = bank.type_mass(4)
    assert set(mass) == {"content", "delimiter"}
    torch.testing.assert_close(sum(mass.values()), torch.ones(3, 3))
    wanted = Counter()
    for c, w in zip(
        bank.candidates[1, 0, 0, 2].tolist(), bank.mixture(4).weights[1, 0, 0, 2].tolist(), strict=True
    ):
        wanted[atoms[1].types[c]] += w
    assert mass["delimiter"][1, 2].item() == pytest.approx(wanted["delimiter"], abs=1e-6)
    assert (mass["delimiter"] <= 0.15 + 1e-6).all()


def test_without_mixing_all_mass_lies_on_the_anchors(tiny, qwen3):
    mass = tiny.bank(qwen3, mode="anchor").type_mass(4)
    assert torch.equal(mass["content"], torch.ones(3, 3))
    assert torch.equal(mass["delimiter"], torch.zeros(3, 3))


def test_a_bank_can_be_saved_and_loaded_like_any_module(tiny, qwen3):
    source, target = stirred(tiny.bank(qwen3)), tiny.bank(qwen3)
    target.load_state_dict(source.state_dict())
    ids = tiny.tokens(3, 6)
    rows = torch.tensor([0, 1, 2])
    with inject(qwen3, source.states(4).detach(), rows):
        wanted = qwen3(input_ids=ids).logits
    with inject(qwen3, target.states(4).detach(), rows):
        assert torch.equal(qwen3(input_ids=ids).logits, wanted)


def test_mixture_layers_that_are_not_injected_are_refused(tiny, qwen3):
    with pytest.raises(ValueError, match=r"layer_scope\.mixture holds layers \[0\] that"):
        tiny.bank(qwen3, mixture=(0, 2), injection=(1, 2))


def test_more_sinks_than_tokens_are_refused(atoms):
    with pytest.raises(UserError, match=r"document 'd0' has 18 tokens for phase3\.memory\.sink_slots = 19"):
        MemoryBank(atoms, [], replace(SPEC, sink_slots=19))
