"""Every family of the installed transformers, small and with random weights: what docs/architectures.json says of it is so.

The table is of the transformers that constraints.txt pins; under another version only these tests know less.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from cedkv.core.errors import UserError
from cedkv.injection import capture, check_routed, inject, observe, positions_behind
from cedkv.models import families
from cedkv.models.layers import attention_modules, decoder_of
from cedkv.models.quiet import quiet

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
architectures, miniatures, promises = map(
    importlib.import_module, ("architectures", "miniatures", "promises")
)

TABLE = json.loads(architectures.TABLE.read_text())
ROWS = TABLE["families"]
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what transformers says of old families is not ours to mend
of_the_table = pytest.mark.skipif(
    transformers.__version__ != TABLE["transformers"],
    reason=f"docs/architectures.json is of transformers {TABLE['transformers']}",
)
# One of each mechanism; tests/injection/test_families.py has others, and the slow tests all of them.
DOZEN = """bert biogpt cohere2_moe gemma3 gemma3n_text gemma4_text got_ocr2 laguna llama4_text minicpm3 ministral3
mllama modernbert-decoder moss_transcribe_diarize opt qwen3_moe""".split()


@pytest.fixture(autouse=True)
def silent():
    with quiet():
        yield


def layers_of(model) -> tuple[int, ...]:
    return tuple(layer.index for layer in attention_modules(model).values())


# --------------------------------------------------------------------------------------------------------- the table
def test_the_table_is_of_the_transformers_that_are_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"transformers=={TABLE['transformers']}" in pins, "run scripts/architectures.py --measure"


@of_the_table
def test_every_family_that_transformers_makes_causal_lms_of_is_in_the_table():
    assert {family: row["class"] for family, row in ROWS.items()} == miniatures.FAMILIES


def test_page_and_readme_are_what_the_table_says():
    readme, page = architectures.README.read_text(), architectures.PAGE.read_text()
    assert architectures.stale(TABLE, readme, page) == []
    changed = {**TABLE, "families": {**ROWS, "llama": {**ROWS["llama"], "refused": "is too popular"}}}
    assert len(architectures.stale(changed, readme, page)) == 2


@of_the_table
@pytest.mark.parametrize("family", [family for family, row in ROWS.items() if row["refused"]])
def test_a_family_that_takes_no_slots_is_refused_with_its_reason(family):
    assert promises.refusal(family) == ROWS[family]["refused"]


@of_the_table
@pytest.mark.parametrize("family", DOZEN)
def test_a_family_that_takes_slots_keeps_every_promise(family):
    model = miniatures.miniature(family)
    assert ROWS[family]["refused"] is None
    families.refuse_unrouted(miniatures.configuration(family))
    check_routed(model, layers_of(model))
    for promise in promises.PROMISES:
        promise(model)


@of_the_table
@pytest.mark.slow
@pytest.mark.parametrize("family", ROWS)
def test_a_family_is_what_its_row_says_with_each_attention_implementation(family):
    assert promises.tried(family) == ROWS[family]


@of_the_table
@pytest.mark.parametrize("family", ["beam", "moshi"])
def test_families_are_named_where_the_probe_cannot_see_what_is_wrong(family, monkeypatch):
    """At full size neither a dozen tokens nor the configuration show it."""
    monkeypatch.setattr(families, "NAMED", {})
    families.refuse_unrouted(miniatures.configuration(family))
    model = miniatures.miniature(family)
    with pytest.raises(AssertionError):
        promises.a_document_injected_whole_is_the_document_read(model)
    if family == "moshi":
        ids = promises.tokens(1, promises.PROMPT)
        told = [
            model.generate(ids, use_cache=cache, max_new_tokens=6, do_sample=False) for cache in (True, False)
        ]
        assert not torch.equal(*told)  # no slots are in this


# ----------------------------------------------------------------------------------------------------- other settings
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_half_precision_keeps_what_does_not_depend_on_rounding(family):
    model = miniatures.miniature(family).to(torch.bfloat16)
    check_routed(model, layers_of(model))
    promises.an_empty_memory_changes_nothing(model)
    promises.training_moves_the_memory_alone(model)
    with inject(model, promises.memory(model)):
        assert promises.log_probs(model, promises.tokens(2, 9)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_what_a_document_leaves_outside_of_keys_and_values_is_noticed_without_a_name(family, dtype):
    model = miniatures.miniature(family).to(dtype)
    with pytest.raises(UserError, match=f"'{family}' takes more from a document than its keys and values"):
        check_routed(model, layers_of(model))


def gradients(model, slots) -> list[torch.Tensor]:
    tensors = [x.requires_grad_() for x in (*slots.keys.values(), *slots.values.values())]
    torch.manual_seed(0)  # of dropout
    with inject(model, slots):
        loss = promises.log_probs(model, promises.tokens(2, 9))[..., 5].mean()
    return list(torch.autograd.grad(loss, tensors))


@of_the_table
@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family, row in ROWS.items() if not row["refused"]])
def test_slots_get_the_same_gradients_under_gradient_checkpointing(family):
    model = miniatures.miniature(family)
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers cannot do it in this family")
    slots = promises.memory(model)
    wanted = gradients(model.train(), slots.detach())
    model.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, slots.detach()), wanted, atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------------------------- what single families brought up
def test_a_document_is_captured_at_positions_that_do_not_scale_its_queries_to_nothing():
    """Ministral 3 scales queries by the logarithm of their position: before the context begins there is none."""
    model, document = miniatures.miniature("ministral3"), promises.tokens(12)
    atoms = capture(model, "d", tuple(document.tolist()), ("content",) * 12)
    assert all(x.isfinite().all() for x in (*atoms.keys.values(), *atoms.values.values()))


@pytest.mark.parametrize("distance", [0, 1])
def test_a_captured_key_is_the_one_at_the_negative_position(distance):
    """The same bits as where the whole model is told that the document ends before position 0."""
    model, document, calls = miniatures.miniature("llama"), promises.tokens(1, 12), []
    atoms = capture(model, "d", tuple(document[0].tolist()), ("content",) * 12, distance)
    with torch.no_grad(), observe(model, layers_of(model), calls.append):
        model(input_ids=document, position_ids=torch.arange(12)[None] - 12 + distance, use_cache=False)
    for call in calls:
        assert torch.equal(atoms.keys[call.layer], call.key[0])
        assert torch.equal(atoms.values[call.layer], call.value[0])


def test_a_document_longer_than_the_chunks_a_layer_attends_in_is_refused():
    """Chunks are counted from the front of the teacher's context, which the injected model does not have."""
    model, prompt = miniatures.miniature("llama4_text"), promises.tokens(1, 9)
    for length in (55, 56):
        document = tuple(promises.tokens(length, seed=1).tolist())
        whole = capture(model, "d", document, ("content",) * length).as_states()
        with inject(model, whole):
            behind = positions_behind(model, whole, 9)
            if length + 9 <= 64:
                promises.log_probs(model, prompt, position_ids=behind)
                continue
            with pytest.raises(UserError, match=r"layer 0 attends in chunks of 64 tokens, .* are 65: split"):
                promises.log_probs(model, prompt, position_ids=behind)
    slots = promises.memory(model)  # are seen from everywhere
    with inject(model, slots):
        assert promises.log_probs(model, promises.tokens(1, 70)).isfinite().all()


def test_only_the_language_model_of_one_that_sees_is_switched():
    model = miniatures.miniature("gemma3")
    decoder, eyes = decoder_of(model), model.model.vision_tower
    assert type(decoder).__name__ == "Gemma3TextModel"
    eyes.set_attn_implementation("eager")
    before = model.config._attn_implementation
    with inject(model, promises.memory(model)):
        assert (decoder.config._attn_implementation, eyes.config._attn_implementation) == (
            "cedkv_sdpa",
            "eager",
        )
    assert (decoder.config._attn_implementation, eyes.config._attn_implementation) == ("sdpa", "eager")
    assert model.config._attn_implementation == before
    assert (
        decoder_of(miniatures.miniature("bloom")).config.model_type == "bloom"
    )  # nothing attends: the model itself
