"""Multiply-adds read from the modules, against torch's own counter and against the attention weights of real passes."""

from __future__ import annotations

import pytest
import torch

from cedkv.bench.counted import counted
from cedkv.bench.floor import Floor
from cedkv.bench.macs import Asked, needed, projections, visible, whole
from cedkv.bench.peers import log_probs
from cedkv.core.errors import UserError
from cedkv.evaluate import choose_shortcut, stress
from cedkv.injection import AttentionCall, inject
from cedkv.injection.resume import resume
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.models.layers import attention_modules, decoder_layers
from tests.tiny_models import TinyModels

COUNTED = ("llama", "qwen2", "qwen3", "gemma3_text", "mistral", "gpt_neox", "gpt2", "phi", "olmo2", "exaone4")
ROWS, LENGTH = 2, 9  # longer than the windows of the tiny models


@pytest.mark.parametrize("family", COUNTED)
def test_products_of_a_plain_pass_are_those_that_torch_counts(tiny: TinyModels, family: str) -> None:
    model = tiny(family)
    states = tiny.memory(model, layers=[2])

    def run() -> None:
        with inject(model, states):
            log_probs(model, tiny.tokens(ROWS, LENGTH), 3)

    assert counted(run) == ROWS * whole(model, states, LENGTH, 3).linear


@pytest.mark.parametrize("family", COUNTED)
def test_attention_counts_what_no_mask_hides(tiny: TinyModels, family: str) -> None:
    model = tiny(family)
    states, seen = tiny.memory(model), []

    def look(call: AttentionCall) -> None:
        width = call.key.shape[-1] + call.value.shape[-1]
        seen.append(int((call.last_weights(LENGTH) > 0).sum()) * width)

    with torch.no_grad(), inject(model, states, observer=look):
        log_probs(model, tiny.tokens(1, LENGTH))
    assert len(seen) == len(decoder_layers(model))
    assert sum(seen) == whole(model, states, LENGTH).attention


@pytest.mark.parametrize("layers", [(1, 2), (2,), (0, 1, 2)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "phi"])
def test_a_resumed_pass_does_what_is_needed_and_no_more(
    tiny: TinyModels, family: str, layers: tuple[int, ...]
) -> None:
    model, keep = tiny(family), 2
    states = tiny.memory(model, layers=layers)
    prompts = [tuple(row) for row in tiny.tokens(ROWS, LENGTH).tolist()]
    shortcut, _ = choose_shortcut(model, states, prompts, 1e-4)
    assert shortcut is Shortcut.SHARE
    trunk = Trunk(model, prompts, layers[0], shortcut=shortcut, keep=[keep] * ROWS)
    ((_, packed),) = trunk.single(range(ROWS))
    done = counted(lambda: resume(model, trunk, packed, states, torch.zeros(ROWS, dtype=torch.long)))
    least = ROWS * needed(model, states, Asked.prompt(LENGTH, keep)).linear
    # Where queries, keys and values are one module, or merging leaves no attention, there is nothing to leave out.
    last = projections(model, 2, states)
    spare = LENGTH * last.query.numel() + keep * sum(weight.numel() for weight in last.key_value)
    assert done == least + (ROWS * spare if last.fused and len(layers) > 1 else 0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_evaluation_does_what_its_floor_does(tiny: TinyModels, family: str) -> None:
    """Prompts that share beginnings and such that do not; some batches are padded, what that costs is not needed."""
    model = tiny(family)
    top = [layer.index for layer in attention_modules(model).values()][-2:]
    states = tiny.memory(model, states=3, layers=top)
    start = tuple(tiny.tokens(6, seed=9).tolist())
    prompts = [start + tuple(tiny.tokens(3, seed=n).tolist()) for n in range(4)]
    prompts += [tuple(tiny.tokens(8, seed=n).tolist()) for n in range(20, 23)]
    trunk = Trunk(model, prompts, top[0], shortcut=Shortcut.SHARE)
    for rows in (3, 6, 64):
        floor = Floor(model, states, trunk, rows)
        done = counted(lambda rows=rows: stress(model, states, trunk, batch_rows=rows))
        assert done == counted(lambda floor=floor: floor.seconds(lambda: None)) == floor.linear
        assert floor.seconds(lambda: None) > 0
    alone = [needed(model, states, Asked.prompt(8))] * 3
    tree = needed(model, states, Asked((*range(6), *(6, 7, 8) * 4), (8,) * 4))
    assert floor.macs == 3 * sum(work.macs for work in (tree, *alone))
    assert tree.macs < 4 * needed(model, states, Asked.prompt(9)).macs


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_layers_whose_products_cannot_be_told_apart_are_refused(tiny: TinyModels, family: str) -> None:
    model = tiny(family)
    with pytest.raises(UserError, match="cannot be counted: name another model"):
        whole(model, tiny.memory(model), LENGTH)


def test_visible_pairs_by_counting_them() -> None:
    for length in (1, 4, 9):
        for window in (None, 1, 3, 20):
            pairs = [(q, k) for q in range(length) for k in range(q + 1) if window is None or q - k < window]
            assert visible(range(length), window) == len(pairs)
            assert visible([length - 1], window) == sum(q == length - 1 for q, _ in pairs)
