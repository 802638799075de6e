"""A memory on disk: what was written is what was injected, and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save

from cedkv.core.errors import UserError
from cedkv.injection import inject
from cedkv.memory.export import Origin, read_memory, write_memory

ORIGIN = Origin("f" * 64, "c" * 64, "mine", {"hidden_size": 32}, "float32", "t" * 64, False, "\n")


def test_the_written_states_are_the_injected_ones(tiny, tmp_path):
    model = tiny("qwen3")
    bank = tiny.bank(model, share="layer", sink_slots=1)
    tensors, described = write_memory(tmp_path, bank, 4, ORIGIN)
    memory = read_memory(tensors, described)
    assert (memory.documents, memory.origin) == (bank.documents, ORIGIN)
    assert torch.equal(memory.slot_weights, bank.mixture(4).weights)
    assert memory.provenance == {}
    read, stored = memory.states, load_file(tensors)
    ids, rows = tiny.tokens(3, 6), torch.tensor([2, 1, 0])
    with inject(model, bank.states(4).detach(), rows):
        wanted = model(input_ids=ids).logits
    with inject(model, read, rows):
        assert torch.equal(model(input_ids=ids).logits, wanted)
    assert torch.equal(stored["logits"], bank.logits)
    assert torch.equal(stored["weights"], bank.mixture(4).weights)
    assert torch.equal(stored["candidates"], bank.candidates)


def test_the_description_says_what_it_is_and_where_every_slot_is_anchored(tiny, tmp_path):
    bank = tiny.bank(tiny("qwen3"), mixture=(2,), sink_slots=1)
    _, described = write_memory(tmp_path, bank, 4, ORIGIN)
    meta = json.loads(described.read_text())
    assert meta["format"] == 4
    assert meta["origin"] == asdict(ORIGIN)
    assert meta["documents"] == ["d0", "d1", "d2"]
    assert (meta["mode"], meta["share"], meta["topk"]) == ("v_only", "shared", 4)
    assert meta["layers"] == {"injection": [1, 2], "mixture": [2]}
    assert (meta["slots"], meta["sink_slots"]) == (4, 1)
    written = [[(a["chunk"], a["layer"], a["position"]) for a in document] for document in meta["anchors"]]
    assert written == [list(document) for document in bank.anchors]
    assert meta["candidate_types"] == [[list(slot) for slot in document] for document in bank.candidate_types]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t, d: t.write_bytes(t.read_bytes()[:-100]), "names another hash than its tensors have"),
        (lambda t, d: t.write_bytes(_flipped(t.read_bytes())), "names another hash than its tensors have"),
        (lambda t, d: _agreed(t, d, b"\x80\x04N."), r"cannot be read \(SafetensorError"),
        (lambda t, d: _change(d, "tensors_sha256", None), "names another hash than its tensors have"),
        (lambda t, d: _change(d, "slots", "ㄱ"), r"cannot be read \(ValueError"),
        (lambda t, d: d.write_bytes(b"\xff"), r"cannot be read \(UnicodeDecodeError"),
        (lambda t, d: d.write_text("[" * 100_000), r"cannot be read \(RecursionError"),
        (lambda t, d: t.unlink(), "cannot be read"),
        (lambda t, d: d.write_text("{"), "cannot be read"),
        (lambda t, d: _change(d, "layers", {"injection": [1, 3]}), r"cannot be read \(KeyError: 'keys\.3'\)"),
        (lambda t, d: _change(d, "format", 9), "has format 9; this version reads \\(1, 2, 3, 4\\)"),
        (lambda t, d: _change(d, "slots", 9), "not of 3 documents and 9 slots"),
        (lambda t, d: _change(d, "documents", ["d0"]), "not of 1 documents"),
        (lambda t, d: _change(d, "documents", ["d0", "d0", "d1"]), "not names, each its own"),
        (lambda t, d: _change(d, "anchors", [[]] * 3), "anchors are not those of 3 documents"),
        (lambda t, d: _change(d, "anchors", [[{"position": "x"}] * 3] * 3), "an anchor has no position"),
        (
            lambda t, d: _change(d, "candidate_types", [[["content"]] * 3] * 3),
            "candidate_types are not those",
        ),
        (lambda t, d: _change(d, "mode", None, gone=True), r"KeyError: 'mode'"),
        (lambda t, d: _change(d, "origin", {"pickle": 1}), r"cannot be read \(TypeError"),
        (lambda t, d: _agreed(t, d, _poisoned(t)), "is not finite"),
    ],
)
def test_a_damaged_memory_is_refused(tiny, tmp_path, spoil, says):
    tensors, described = write_memory(tmp_path, tiny.bank(tiny("qwen3")), 4, ORIGIN)
    spoil(tensors, described)
    with pytest.raises(UserError, match=says):
        read_memory(tensors, described)


def test_a_memory_of_format_3_is_read(tiny, tmp_path):
    """As runs logged them before: what it was made with stood beside the rest, and was less."""
    tensors, described = write_memory(tmp_path, tiny.bank(tiny("qwen3")), 4, ORIGIN)
    meta = json.loads(described.read_text())
    meta.pop("origin")
    described.write_text(json.dumps(meta | {"format": 3, "model_fingerprint": "f", "config_hash": "c"}))
    assert read_memory(tensors, described).origin == Origin("f", "c")


def _change(described, key, value, *, gone=False):
    meta = json.loads(described.read_text()) | {key: value}
    if gone:
        del meta[key]
    described.write_text(json.dumps(meta))


def _flipped(content):
    """One bit of the last number is another."""
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def _agreed(tensors, described, content):
    """Other tensors, whose hash is the one that is named."""
    tensors.write_bytes(content)
    _change(described, "tensors_sha256", sha256(content).hexdigest())


def _poisoned(tensors):
    stored = load_file(tensors)
    stored["values.1"][0, 0, 0, 0] = torch.nan
    return save(stored)
