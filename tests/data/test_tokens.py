from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedkv.core.errors import UserError
from cedkv.data.records import Document
from cedkv.data.tokens import FastTokenizer, check_fits, encode_document, encode_on, encode_prompt

words = st.lists(st.text("abdegor'7é😀。", min_size=1, max_size=5), min_size=1, max_size=6).map(" ".join)


def ids_of(tokenizer: FastTokenizer, text: str) -> tuple[int, ...]:
    """All ids but an EOS at the end."""
    ids = tuple(tokenizer(text)["input_ids"])
    return ids[:-1] if tokenizer.convert_ids_to_tokens(ids[-1]) == "<|end|>" else ids


def test_prompt_and_answer_together_are_the_full_text(tokenizer: FastTokenizer) -> None:
    prompt, answer = encode_on(tokenizer, "Mara's dog is called", " Bruno")
    assert (
        prompt
        == ids_of(tokenizer, "Mara's dog is called")
        == encode_prompt(tokenizer, "Mara's dog is called", name="x")
    )
    assert prompt + answer == ids_of(tokenizer, "Mara's dog is called Bruno")
    assert answer


@given(prompt=words, answer=words)
def test_an_answer_is_encoded_as_in_the_full_text_or_refused(
    byte_level: FastTokenizer, metaspace: FastTokenizer, prompt: str, answer: str
) -> None:
    for tokenizer in (byte_level, metaspace):
        for between in (" ", ""):
            full = ids_of(tokenizer, prompt + between + answer)
            alone = ids_of(tokenizer, prompt)
            if full[: len(alone)] == alone and len(full) > len(alone):
                assert encode_on(tokenizer, prompt, between + answer) == (alone, full[len(alone) :])
            else:
                with pytest.raises(UserError, match="meet inside a token"):
                    encode_on(tokenizer, prompt, between + answer)


def test_bos_stays_and_eos_goes(byte_level: FastTokenizer, trimming: FastTokenizer) -> None:
    assert byte_level.convert_ids_to_tokens(encode_prompt(byte_level, "red", name="x")[0]) == "<|bos|>"
    assert "<|end|>" in trimming.convert_ids_to_tokens(trimming("red")["input_ids"])
    assert "<|end|>" not in trimming.convert_ids_to_tokens(list(encode_prompt(trimming, "red", name="x")))


@pytest.mark.parametrize(
    ("prompt", "answer", "remedy"),
    [
        ("Mara's dog is ", "Bruno", "move the white space at the prompt's end to the start of the answer"),
        (
            "Mara's dog is call",
            "ed Bruno",
            "start the answer with a space, or end the prompt after a whole word",
        ),
    ],
)
def test_a_prompt_that_ends_inside_a_token_is_refused_with_the_tokens(
    byte_level: FastTokenizer, prompt: str, answer: str, remedy: str
) -> None:
    with pytest.raises(
        UserError, match=r"ON prompt 'p7': .*must end at a token boundary of the full text"
    ) as caught:
        encode_on(byte_level, prompt, answer, name="ON prompt 'p7'")
    assert str(caught.value).endswith(remedy)
    assert repr(prompt) in str(caught.value)
    assert "'Ġ" in str(caught.value)


def test_an_answer_without_tokens_is_refused(tokenizer: FastTokenizer) -> None:
    with pytest.raises(UserError, match="answer '' adds no token"):
        encode_on(tokenizer, "Mara's dog is", "")


def test_a_text_without_tokens_is_refused(tokenizer: FastTokenizer) -> None:
    with pytest.raises(UserError, match="OFF prompt 'x': '' has no tokens"):
        encode_prompt(tokenizer, "", name="OFF prompt 'x'")
    with pytest.raises(UserError, match="document 'd' has no tokens"):
        encode_document(tokenizer, Document("d", ""))


def test_document_offsets_give_the_text_back(tokenizer: FastTokenizer) -> None:
    text = "Mara's  dog 😀\n is called «Bruno»。"
    encoded = encode_document(tokenizer, Document("d", text))
    assert encoded.ids == ids_of(tokenizer, text)
    covered = {place for start, stop in encoded.offsets for place in range(start, stop)}
    assert {place for place, char in enumerate(text) if not char.isspace()} <= covered
    starts = [start for start, _ in encoded.offsets]
    assert starts == sorted(starts)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="tokenizer Slow gives no character offsets; use a fast tokenizer"):
        encode_prompt(Slow(), "x", name="x")  # type: ignore[arg-type]


def test_inputs_longer_than_the_context_are_refused_with_their_parts() -> None:
    check_fits("x", {"document": 500, "prompt": 12}, 512)
    with pytest.raises(
        UserError, match=r"ON prompt 'p': 500 \(document\) \+ 13 \(prompt\) = 513 tokens, more .* 512"
    ):
        check_fits("ON prompt 'p'", {"document": 500, "prompt": 13}, 512)


def test_the_data_room_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, cedkv.data.build, cedkv.data.tokens\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
