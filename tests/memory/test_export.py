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
from cedkv.ledger import ATOM_TYPES
from cedkv.memory.export import Origin, read_memory, write_memory

ORIGIN = Origin("f" * 64, "c" * 64, "mine", {"hidden_size": 32}, "float32", "t" * 64, False, "\n")


@pytest.mark.parametrize("anchors", ["shared", "layer", "head"])
def test_the_written_states_are_the_injected_ones(tiny, tmp_path, anchors):
    model = tiny("qwen3")
    bank = tiny.bank(model, share="head", anchors=anchors, sink_slots=1)
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
    for name in ("anchors", "candidates", "candidate_types"):
        assert torch.equal(stored[name], getattr(bank, name))
        assert torch.equal(getattr(memory, name), getattr(bank, name))


def test_the_description_says_what_it_is_and_where_every_slot_is_anchored(tiny, tmp_path):
    bank = tiny.bank(tiny("qwen3"), mixture=(2,), sink_slots=1)
    _, described = write_memory(tmp_path, bank, 4, ORIGIN)
    meta = json.loads(described.read_text())
    assert meta["format"] == 5
    assert meta["origin"] == asdict(ORIGIN)
    assert meta["documents"] == ["d0", "d1", "d2"]
    assert (meta["mode"], meta["share"], meta["topk"]) == ("v_only", "shared", 4)
    assert meta["layers"] == {"injection": [1, 2], "mixture": [2]}
    assert (meta["slots"], meta["sink_slots"]) == (4, 1)
    assert meta["anchors"] == [
        [{"chunk": 0, "layer": i} for i in document] for document in bank.anchor_layers
    ]
    assert set(sum(bank.anchor_layers, ())) <= {1, 2}
    assert meta["atom_types"] == list(ATOM_TYPES)


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
        (lambda t, d: _change(d, "format", 9), "has format 9; this version reads \\(1, 2, 3, 4, 5\\)"),
        (lambda t, d: _change(d, "slots", 9), "not those of 3 documents with 9 mixed slots"),
        (
            lambda t, d: (_change(d, "slots", 9), _change(d, "sink_slots", 6)),
            "not of 3 documents and 9 slots",
        ),
        (lambda t, d: _change(d, "documents", ["d0"]), "not those of 1 documents"),
        (lambda t, d: _change(d, "documents", ["d0", "d0", "d1"]), "not names, each its own"),
        (lambda t, d: _change(d, "anchors", [[]] * 3), "anchors have no layer, or one too many"),
        (
            lambda t, d: _change(d, "atom_types", ["content"]),
            "candidate_types are not those of the candidates",
        ),
        (lambda t, d: _cut(t, d, "anchors"), "anchors are not positions of 3 documents with 3 mixed slots"),
        (lambda t, d: _cut(t, d, "candidate_types"), "candidate_types are not those of the candidates"),
        (lambda t, d: _cut(t, d, "candidates"), "candidates are not those of 3 documents with 3 mixed slots"),
        (lambda t, d: _cut(t, d, "weights"), "weights and candidates have other shapes"),
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


@pytest.mark.parametrize("version", [3, 4])
def test_a_memory_of_an_older_format_is_read(tiny, tmp_path, version):
    """As runs logged them before: anchors and the types of candidates stood in the description; before 4 less of its origin."""
    bank = tiny.bank(tiny("qwen3"))
    tensors, described = write_memory(tmp_path, bank, 4, ORIGIN)
    stored, meta = load_file(tensors), json.loads(described.read_text())
    del stored["anchors"], stored["candidate_types"], meta["atom_types"]
    stored["candidates"] = bank.candidates[:, 0, 0].contiguous()
    names = [*ATOM_TYPES, None]  # the last one for padding
    meta["candidate_types"] = [
        [[names[t] for t in row] for row in document[0][0]] for document in bank.candidate_types.tolist()
    ]
    meta["anchors"] = [
        [
            {"chunk": 0, "layer": layer, "position": position}
            for layer, position in zip(layers, positions[0][0], strict=True)
        ]
        for layers, positions in zip(bank.anchor_layers, bank.anchors.tolist(), strict=True)
    ]
    if version == 3:
        del meta["origin"]
        meta |= {"model_fingerprint": "f", "config_hash": "c"}
    described.write_text(json.dumps(meta | {"format": version}))
    _agreed(tensors, described, save(stored))
    memory = read_memory(tensors, described)
    assert memory.origin == (Origin("f", "c") if version == 3 else ORIGIN)
    for name in ("anchors", "candidates", "candidate_types"):
        assert torch.equal(getattr(memory, name), getattr(bank, name))


def test_an_older_memory_whose_tensors_have_no_axes_is_refused(tiny, tmp_path):
    tensors, described = write_memory(tmp_path, tiny.bank(tiny("qwen3")), 4, ORIGIN)
    meta = json.loads(described.read_text())
    meta |= {"format": 4, "anchors": [[{"position": 1}]], "candidate_types": [[["content"]]]}
    described.write_text(json.dumps(meta))
    _agreed(tensors, described, save(load_file(tensors) | {"candidates": torch.tensor(1)}))
    with pytest.raises(UserError, match=r"cannot be read \(IndexError"):
        read_memory(tensors, described)


def _cut(tensors, described, name):
    """One slot of the last document is missing from a tensor."""
    stored = load_file(tensors)
    axis = 2 if stored[name].ndim == 3 else 3
    _agreed(tensors, described, save(stored | {name: stored[name].narrow(axis, 0, 2).contiguous()}))


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
