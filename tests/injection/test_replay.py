"""Gradient checkpointing: layers run again in the backward pass, outside the block, and still with its slots."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from cedkv.core.errors import UserError
from cedkv.evaluate import stress
from cedkv.injection import inject
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules

# A reentrant checkpoint says this of layers that nothing trainable enters, as all are below the first injected one.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_oss")  # two ways to number positions, soft caps, sinks


def checkpointed(tiny, family: str, reentrant: bool | None):
    model = tiny.fresh(
        family, **({"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if family == "gpt2" else {})
    )
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def scaled(memory: States, by: torch.Tensor) -> States:
    """Slots of all layers that come out of one graph, as those of a mixture do, with a bias each."""
    keys = {layer: key * by[0] for layer, key in memory.keys.items()}
    values = {layer: value * by[1] for layer, value in memory.values.items()}
    bias = {layer: key[:, :1, :, 0] * by[2] for layer, key in memory.keys.items()}
    return replace(memory, keys=keys, values=values, bias=bias)


def loss_of(model, ids):
    return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 5].mean()


@pytest.mark.parametrize("layers", [None, [2]], ids=["all", "top"])
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_get_the_loss_and_the_gradients_they_get_without_it(tiny, family, layers):
    ids, rows, found = tiny.tokens(2, 9), torch.tensor([1, 0]), []
    memory = tiny.memory(tiny(family), states=2, layers=layers)
    for reentrant in (None, False, True):
        model, by = checkpointed(tiny, family, reentrant), torch.ones(3, requires_grad=True)
        runs = Counter()
        for module in attention_modules(model):
            module.register_forward_pre_hook(lambda module, _, runs=runs: runs.update([module.layer_idx]))
        with inject(model, scaled(memory, by), rows):
            loss = loss_of(model, ids)
        forward = runs.total()
        loss.backward()
        assert (runs.total() > forward) == (reentrant is not None)  # else nothing is tested
        assert all(parameter.grad is None for parameter in model.parameters())
        found.append((loss.detach(), by.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(
            loss, found[0][0], atol=1e-6, rtol=0
        )  # without a graph torch takes other kernels
        torch.testing.assert_close(gradient, found[0][1], atol=1e-7, rtol=1e-5)
    assert (found[0][1].abs() > 1e-6).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_run_again_with_the_memory_of_their_own_block(tiny, reentrant):
    """Whatever is attached by then: another memory, none, or none at all."""
    ids, one, other = tiny.tokens(2, 9), tiny.memory(tiny("llama")), tiny.memory(tiny("llama"), slots=5)
    wanted = torch.ones(3, requires_grad=True)
    model = checkpointed(tiny, "llama", None)
    with inject(model, scaled(one, wanted)):
        loss_of(model, ids).backward()
    model = checkpointed(tiny, "llama", reentrant)
    for block in (inject(model, other), inject(model, None), nullcontext()):
        by = torch.ones(3, requires_grad=True)
        with inject(model, other), inject(model, scaled(one, by)):
            loss = loss_of(model, ids)
        with block:
            loss.backward()
        torch.testing.assert_close(by.grad, wanted.grad, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_backward_pass_may_run_in_another_thread(tiny, reentrant):
    """As it does on a GPU: threads inherit no block."""
    found = []
    for of in (None, reentrant):
        model, by = checkpointed(tiny, "llama", of), torch.ones(3, requires_grad=True)
        with inject(model, scaled(tiny.memory(tiny("llama")), by)):
            loss = loss_of(model, tiny.tokens(2, 9))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(loss.backward).result()
        found.append(by.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_observers_see_every_layer_once_and_the_model_is_left_as_it_was(tiny, reentrant):
    model, calls = checkpointed(tiny, "llama", reentrant), []
    before = [layer._gradient_checkpointing_func for layer in model.model.layers]
    by = torch.ones(3, requires_grad=True)
    with inject(model, scaled(tiny.memory(tiny("llama")), by), observer=calls.append):
        loss_of(model, tiny.tokens(1, 5)).backward()
    assert [call.layer for call in calls] == [0, 1, 2]
    with pytest.raises(IndexError), inject(model, tiny.memory(tiny("llama"))):
        loss_of(model, tiny.tokens(1, 5) + 1000)  # no such tokens
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == before
    assert model.config._attn_implementation == "sdpa"


# ---------------------------------------------------------------------------------------------------------- refusals
def test_passes_that_are_put_together_from_parts_of_layers_are_refused(tiny):
    model, prompts = checkpointed(tiny, "llama", False), [(3, 4, 5), (3, 4, 6)]
    memory = tiny.memory(tiny("llama"), layers=[1, 2])
    trunk = Trunk(model, prompts, 1, shortcut=Shortcut.TRUNK)
    with pytest.raises(UserError, match=r"gradient checkpointing would run parts .* model\.eval\(\)"):
        stress(model, memory, trunk, batch_rows=8)
    assert stress(model.eval(), memory, trunk, batch_rows=8).kl.isfinite().all()


_SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
_SHARED |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size_per_layer_input": 67}


def test_a_reentrant_checkpoint_is_refused_where_it_loses_gradients_of_keys_that_layers_share(tiny):
    sizes = dict.fromkeys(["hidden_size", "intermediate_size"], 32) | {"vocab_size": 67, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    model = tiny.fresh("gemma3n_text", **sizes, **_SHARED, activation_sparsity_pattern=[0.0] * 4).train()
    memory, ids, found = tiny.memory(model), tiny.tokens(2, 9), []
    for reentrant in (None, False, True):
        by = torch.ones(3, requires_grad=True)
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        refused = (
            pytest.raises(UserError, match=r"the last 2 layers .* use_reentrant=False")
            if reentrant
            else nullcontext()
        )
        with refused, inject(model, scaled(memory, by)):
            loss_of(model, ids).backward()
            found.append(by.grad)
    assert len(found) == 2
    torch.testing.assert_close(found[1], found[0], atol=1e-7, rtol=1e-5)
    assert model.config._attn_implementation == "sdpa"
