"""The embedded model's tokenizer and architecture; how well its weights do is not asked here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.utils import logging as hf_logging

from cedkv.models import tiny as embedded
from cedkv.models.layers import attention_modules, resolve_scope

TEXTS = ["The lamp of Mara is green, isn't it?", "Q: What is 12 plus 7? A: 19", " harbour\n"]
SPECIAL = (embedded.BOS, embedded.EOS, embedded.PAD)


@pytest.fixture(scope="module")
def tokenizer():
    return embedded.build_tokenizer(TEXTS)


@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL)))
@example("The lamp of Mara is green")
@example(" two  spaces, a\ttab\r\nand 日本語 Ελληνικά 🦉 \u0000 e\u0301")
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@given(st.text())
def test_no_text_needs_an_unknown_token_and_every_text_starts_with_bos(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert all(0 <= token < len(tokenizer) for token in ids)


@pytest.mark.parametrize("word", [" lamp", " Mara", " harbour", " 12", "The", "?", "Q", " 19", "'t"])
def test_a_known_word_is_one_token(tokenizer, word):
    assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_an_unknown_word_falls_back_to_its_bytes(tokenizer):
    ids = tokenizer("ß", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2  # two bytes in UTF-8
    assert tokenizer.decode(ids) == "ß"


def test_the_tokens_do_not_depend_on_the_order_of_the_texts(tokenizer):
    assert embedded.build_tokenizer(reversed(TEXTS)).get_vocab() == tokenizer.get_vocab()


def test_offsets_name_the_characters_of_each_token(tokenizer):
    text = "The lamp of Zoë is green"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    offsets = encoded["offset_mapping"]
    assert text[offsets[1][0] : offsets[1][1]].strip() == "lamp"
    assert offsets[-1][1] == len(text)


def test_top25_names_the_global_layers_and_nothing_reaches_further_below(tokenizer):
    model = embedded.build_model(len(tokenizer)).eval()
    layers = list(attention_modules(model).values())
    windows = [layer.window for layer in layers]
    assert windows == [embedded.SLIDING_WINDOW] * embedded.LOCAL_LAYERS + [None] * embedded.GLOBAL_LAYERS
    assert resolve_scope("top25", layers) == resolve_scope("full_attention", layers) == (6, 7)
    reach = embedded.LOCAL_LAYERS * (embedded.SLIDING_WINDOW - 1)
    assert reach == embedded.LOCAL_REACH
    ids = torch.randint(3, 200, (1, reach + 8), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = 201
    with torch.no_grad():
        one, two = (
            model(input_ids=x, output_hidden_states=True, use_cache=False).hidden_states[6]
            for x in (ids, changed)
        )
    moved = (one - two).abs().amax(-1)[0] > 0
    assert moved[: reach + 1].any()
    assert not moved[reach + 1 :].any()


def test_the_vocabulary_is_padded_to_a_multiple_of_64(tokenizer):
    config = embedded.build_config(len(tokenizer))
    assert config.vocab_size % 64 == 0
    assert len(tokenizer) <= config.vocab_size < len(tokenizer) + 64


def test_saving_leaves_the_library_as_talkative_as_it_was(tokenizer, tmp_path):
    embedded.save(embedded.build_model(len(tokenizer)), tokenizer, tmp_path)
    assert hf_logging.is_progress_bar_enabled()
