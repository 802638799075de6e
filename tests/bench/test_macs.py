"""Multiply-adds read from the modules, against torch's own counter and against the attention weights of real passes."""

from __future__ import annotations

import pytest
import torch

from cedkv.bench.counted import counted
from cedkv.bench.floor import Floor, Pass, passes
from cedkv.bench.macs import needed, projections, visible, whole
from cedkv.bench.peers import log_probs
from cedkv.core.errors import UserError
from cedkv.evaluate import choose_shortcut
from cedkv.injection import AttentionCall, inject
from cedkv.injection.resume import resume
from cedkv.injection.trunk import Shortcut, Trunk
from cedkv.models.layers import decoder_layers
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
def test_a_resumed_pass_does_what_is_needed_and_hardly_more(
    tiny: TinyModels, family: str, layers: tuple[int, ...]
) -> None:
    model, keep = tiny(family), 2
    states = tiny.memory(model, layers=layers)
    prompts = [tuple(row) for row in tiny.tokens(ROWS, LENGTH).tolist()]
    shortcut, _ = choose_shortcut(model, states, prompts, 1e-4)
    assert shortcut is Shortcut.MERGE
    trunk = Trunk(model, prompts, layers[0], shortcut=shortcut, keep=[keep] * ROWS)
    ((_, bucket, places),) = trunk.groups(range(ROWS), ROWS)
    rows = torch.zeros(ROWS, dtype=torch.long)
    done = counted(lambda: resume(model, bucket, places, states, rows, shortcut=shortcut))
    least = ROWS * needed(model, states, LENGTH, keep).linear
    # The last layer is called twice: for the keys and values of all positions, and for the last positions. Nobody asks
    # for the first call's queries and the second one's keys and values; where it merges, it is called once.
    last = projections(model, 2, states)
    spare = LENGTH * last.query.numel() + keep * sum(weight.numel() for weight in last.key_value)
    assert least <= done <= least + (ROWS * spare if len(layers) > 1 else 0)


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_layers_whose_products_cannot_be_told_apart_are_refused(tiny: TinyModels, family: str) -> None:
    model = tiny(family)
    with pytest.raises(UserError, match="cannot be counted: name another model"):
        whole(model, tiny.memory(model), LENGTH)


def test_visible_pairs_by_counting_them() -> None:
    for length in (1, 4, 9):
        for window in (None, 1, 3, 20):
            pairs = [(q, k) for q in range(length) for k in range(q + 1) if window is None or q - k < window]
            assert visible(length, window) == len(pairs)
            assert visible(length, window, 1) == sum(q == length - 1 for q, _ in pairs)


def test_passes_have_the_shapes_of_the_evaluation() -> None:
    assert passes([5, 5, 9, 5], states=2, batch_rows=4) == [Pass(5, 4, 1), Pass(5, 2, 1), Pass(9, 2, 1)]
    assert passes([5, 5], states=5, batch_rows=2) == [Pass(5, 2, 4), Pass(5, 1, 2)]


def test_the_floor_runs_the_needed_products_and_no_others(tiny: TinyModels) -> None:
    model = tiny("llama")
    states = tiny.memory(model, states=2, layers=[1, 2])
    floor = Floor(model, states, [5, 5, 9], batch_rows=4)
    linear = sum(p.count * p.pairs * w.linear for p, w in zip(floor.passes, floor.work, strict=True))
    assert counted(lambda: floor.seconds(lambda: None)) == linear
    assert floor.macs == 4 * needed(model, states, 5).macs + 2 * needed(model, states, 9).macs
    assert floor.seconds(lambda: None) > 0
