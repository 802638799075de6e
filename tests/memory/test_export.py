"""A memory on disk: what was written is what was injected, and where it came from."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from cedkv.injection import inject
from cedkv.memory.export import write_memory
from cedkv.memory.state import States


def test_the_written_states_are_the_injected_ones(tiny, tmp_path):
    model = tiny("qwen3")
    bank = tiny.bank(model, share="layer", sink_slots=1)
    tensors, _ = write_memory(tmp_path, bank, 4, "fingerprint", "hash")
    stored = load_file(tensors)
    layers = sorted(int(name.split(".")[1]) for name in stored if name.startswith("keys."))
    read = States({i: stored[f"keys.{i}"] for i in layers}, {i: stored[f"values.{i}"] for i in layers})
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
    assert meta["format"] == 1
    assert (meta["model_fingerprint"], meta["config_hash"]) == ("f" * 64, "c" * 64)
    assert meta["documents"] == ["d0", "d1", "d2"]
    assert (meta["mode"], meta["share"], meta["topk"]) == ("v_only", "shared", 4)
    assert meta["layers"] == {"injection": [1, 2], "mixture": [2]}
    assert (meta["slots"], meta["sink_slots"]) == (4, 1)
    written = [[(a["chunk"], a["layer"], a["position"]) for a in document] for document in meta["anchors"]]
    assert written == [list(document) for document in bank.anchors]
    assert meta["candidate_types"] == [[list(slot) for slot in document] for document in bank.candidate_types]
