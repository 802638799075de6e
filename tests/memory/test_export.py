"""A memory on disk: what was written is what was injected, and where it came from."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save

from cedkv.core.errors import UserError
from cedkv.injection import inject
from cedkv.memory.export import read_memory, write_memory


def test_the_written_states_are_the_injected_ones(tiny, tmp_path):
    model = tiny("qwen3")
    bank = tiny.bank(model, share="layer", sink_slots=1)
    tensors, described = write_memory(tmp_path, bank, 4, "fingerprint", "hash")
    memory = read_memory(tensors, described)
    assert (memory.documents, memory.model_fingerprint, memory.config_hash) == (
        bank.documents,
        "fingerprint",
        "hash",
    )
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
    _, described = write_memory(tmp_path, bank, 4, "f" * 64, "c" * 64)
    meta = json.loads(described.read_text())
    assert meta["format"] == 3
    assert (meta["model_fingerprint"], meta["config_hash"]) == ("f" * 64, "c" * 64)
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
        (lambda t, d: _change(d, "format", 9), "has format 9; this version reads \\(1, 2, 3\\)"),
        (lambda t, d: _change(d, "slots", 9), "not of 3 documents and 9 slots"),
        (lambda t, d: _change(d, "documents", ["d0"]), "not of 1 documents"),
        (lambda t, d: _agreed(t, d, _poisoned(t)), "is not finite"),
    ],
)
def test_a_damaged_memory_is_refused(tiny, tmp_path, spoil, says):
    tensors, described = write_memory(tmp_path, tiny.bank(tiny("qwen3")), 4, "f", "c")
    spoil(tensors, described)
    with pytest.raises(UserError, match=says):
        read_memory(tensors, described)


def _change(described, key, value):
    described.write_text(json.dumps(json.loads(described.read_text()) | {key: value}))


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
