"""Loading: a frozen model in evaluation mode with a fingerprint, or one clear refusal."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.utils import logging as hf_logging

from cedkv.core.errors import UserError
from cedkv.injection import check_routed, inject
from cedkv.models.families import refuse_unrouted
from cedkv.models.load import fingerprint, load_model, load_tokenizer, pick_device
from cedkv.models.tiny import build_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"


def load(name: str, **options):
    return load_model(name, device="cpu", **options)


def test_a_model_comes_frozen_in_evaluation_mode_with_its_tokenizer(checkpoint, tiny):
    loaded = load(checkpoint().name)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("words")["input_ids"][0] == 1
    assert (loaded.context_length, loaded.device) == (128, torch.device("cpu"))
    ids = tiny.tokens(2, 5)
    wanted = tiny("llama")(input_ids=ids).logits
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_the_attention_is_one_that_computes_what_the_family_asks_for(checkpoint, tiny, family, attention):
    """Soft caps and sinks are beyond sdpa; slots reach the logits either way."""
    model = load(checkpoint(family).name).model
    assert model.config._attn_implementation == attention
    check_routed(model, (2,))
    with inject(model, tiny.memory(model)):
        model(input_ids=tiny.tokens(1, 4))


def test_weights_come_in_the_type_that_is_asked_for(checkpoint):
    assert load(checkpoint().name, dtype="bfloat16").model.dtype == torch.bfloat16


def test_loading_leaves_the_library_as_talkative_as_it_was(checkpoint):
    hf_logging.set_verbosity_info()
    try:
        load(checkpoint().name)
        assert hf_logging.get_verbosity() == hf_logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity_warning()


# ------------------------------------------------------------------------------------------------------- fingerprint
def test_the_fingerprint_is_of_what_is_computed_not_of_where_it_lies(checkpoint, tmp_path):
    here = checkpoint()
    loaded = load(here.name)
    elsewhere = shutil.copytree(here.folder, tmp_path / "elsewhere")
    assert load(str(elsewhere)).fingerprint == loaded.fingerprint
    assert len(loaded.fingerprint) == 64
    half = load(here.name, dtype="bfloat16")
    assert half.fingerprint != loaded.fingerprint


def test_one_bit_of_one_weight_changes_the_fingerprint(tiny):
    model = tiny.fresh("llama")
    before = fingerprint(model)
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(torch.inf))
    assert fingerprint(model) != before


def test_another_configuration_of_the_same_weights_is_another_model(tiny):
    one, two = tiny.fresh("llama"), tiny.fresh("llama", rms_norm_eps=1e-3)
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(tiny.fresh("llama"))


# ---------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "family", ["gptj", "bloom", "falcon", "gpt_neo", "codegen", "mpt", "xglm", "openai-gpt"]
)
def test_families_whose_attention_slots_cannot_reach_are_refused(family):
    with pytest.raises(UserError, match=f"family '{family}' does not route .* use a family that takes slots"):
        refuse_unrouted(AutoConfig.for_model(family))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "xlstm"])
def test_families_without_attention_are_refused(family):
    with pytest.raises(UserError, match=f"family '{family}' has no attention"):
        refuse_unrouted(AutoConfig.for_model(family))


def test_a_hybrid_is_refused_by_its_layers_and_not_by_its_name():
    """Granite 4 comes with recurrent layers, and as a small one without."""
    settings = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    with pytest.raises(UserError, match="'granitemoehybrid' keeps part of what it reads in recurrent"):
        refuse_unrouted(AutoConfig.for_model("granitemoehybrid", **settings))
    refuse_unrouted(
        AutoConfig.for_model("granitemoehybrid", **settings | {"layer_types": ["full_attention"] * 2})
    )


def test_routed_families_are_not_refused(tiny, family):
    refuse_unrouted(tiny(family).config)


def test_a_model_that_looks_both_ways_is_refused_when_it_is_loaded(tiny, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    tiny.fresh("bert", vocab_size=67, is_decoder=False, **sizes).save_pretrained(tmp_path)
    build_tokenizer(["Some words to read."]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="family 'bert' has no attention modules that are known to be causal"):
        load(str(tmp_path))


def test_a_family_is_refused_before_its_weights_are_read(checkpoint):
    broken = checkpoint()
    broken.change_config(model_type="gptj")
    (broken.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="family 'gptj' does not route"):
        load(broken.name)


def test_a_tokenizer_comes_without_weights_and_is_the_models_own(checkpoint):
    here = checkpoint()
    whole = load(here.name)
    (here.folder / "model.safetensors").unlink()
    loaded = load_tokenizer(here.name)
    assert loaded.tokenizer("some words")["input_ids"] == whole.tokenizer("some words")["input_ids"]
    assert loaded.context_length == whole.context_length


def test_pickled_weights_are_not_loaded(checkpoint):
    """Unpickling runs code: a folder that has nothing else is refused, and the pickle stays closed."""
    pickled = checkpoint()
    (pickled.folder / "model.safetensors").unlink()
    marker = pickled.folder / "ran"
    torch.save({"weight": _Trap(marker)}, pickled.folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"cannot be loaded \(.*model\.safetensors.*\): give 'embedded', a folder"
    ):
        load(pickled.name)
    assert not marker.exists()


class _Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_code_in_a_checkpoint_does_not_run_unless_it_is_trusted(checkpoint):
    remote = checkpoint()
    remote.change_config(
        model_type="homemade",
        auto_map={"AutoConfig": "homemade.Config", "AutoModelForCausalLM": "homemade.Model"},
    )
    marker = remote.folder / "ran"
    (remote.folder / "homemade.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(UserError, match="contains custom code"):
        load(remote.name)
    assert not marker.exists()
    assert inspect.signature(load_model).parameters["trust_remote_code"].default is False


def test_an_incomplete_checkpoint_is_not_filled_up_with_random_weights(checkpoint):
    taller = checkpoint()
    taller.change_config(num_hidden_layers=5)
    message = r"no weights of the right shape for 18 parameters \('model\.layers\.3\.input_layernorm\.weight' first\)"
    with pytest.raises(UserError, match=message):
        load(taller.name)


def test_weights_of_another_size_are_not_replaced_by_random_ones(checkpoint):
    wider = checkpoint()
    wider.change_config(intermediate_size=64)
    with pytest.raises(UserError, match=r"no weights of the right shape for 9 parameters"):
        load(wider.name)


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _impossible_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": "wide"'))


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _no_causal_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


@pytest.mark.parametrize(
    "spoil",
    [
        _cut_short,
        _empty_weights,
        _broken_config,
        _impossible_config,
        _no_config,
        _no_tokenizer,
        _no_causal_model,
    ],
)
def test_a_folder_that_holds_no_model_is_refused_in_one_message(checkpoint, capfd, spoil):
    spoiled = checkpoint()
    spoil(spoiled.folder)
    capfd.readouterr()
    with pytest.raises(UserError) as refused:
        load(spoiled.name)
    message = str(refused.value)
    assert message.startswith(f"model.name_or_path {spoiled.name!r} cannot be loaded (")
    assert "give 'embedded', a folder with config.json, model.safetensors and tokenizer.json" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")  # nothing beside the message


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path / "absent"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    assert pick_device("auto") == "cpu"
    with pytest.raises(UserError, match="'cuda:0', but this torch sees no CUDA device: use 'cpu' or 'auto'"):
        pick_device("cuda:0")


@pytest.mark.skipif(
    not (SHARED / "models" / "stories260K").is_dir(), reason="needs ../shared/models/stories260K"
)
def test_a_real_trained_model_loads_and_takes_slots():
    loaded = load(str(SHARED / "models" / "stories260K"))
    check_routed(loaded.model, (4,))
    ids = torch.tensor([loaded.tokenizer("Once upon a time, there was a little")["input_ids"]])
    told = loaded.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert "little girl" in loaded.tokenizer.decode(told[0])
