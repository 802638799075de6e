"""From the log to a folder and back: what is exported is what was logged, and says what was judged."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedkv.api import judge
from cedkv.api.folder import NotPassedError, check_logged, export
from cedkv.api.inspection import differences, facts, slots_of
from cedkv.api.memory import stored_in
from cedkv.core.errors import UserError
from cedkv.core.verdict import Status
from cedkv.ledger import ATOM_TYPES
from cedkv.memory.export import Origin, read_memory, write_memory
from cedkv.tracking.reader import read_run


def test_the_folder_says_where_it_is_from_and_what_was_judged(logged):
    stored, record = stored_in(logged.folder), read_run(logged.run_id, logged.uri)
    verdict = judge(logged.run_id, logged.uri)
    told = stored.provenance
    assert told["run_id"] == logged.run_id
    assert told["verdict"]["verdict"] == verdict.gates.status
    assert told["metrics"]["off_delta_p99_stress"] == record.metrics["off_delta_p99_stress"]
    assert told["data"]["stress"] == record.tags["cedkv.hash.stress"]
    assert stored.origin.model_fingerprint == record.tags["cedkv.model_fingerprint"]
    assert stored.origin.config_hash == record.tags["cedkv.config_hash"]
    assert sorted(path.name for path in logged.folder.iterdir()) == ["memory.json", "memory.safetensors"]
    assert check_logged(stored, logged.uri).gates.status is verdict.gates.status


def test_what_the_gates_do_not_pass_is_not_exported(logged, tmp_path):
    """The random model of this run recalls nothing, so its Gate A fails."""
    with pytest.raises(NotPassedError, match="nothing is exported") as refused:
        export(logged.run_id, logged.uri, tmp_path / "memory")
    assert refused.value.status is Status.FAIL
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_use_is_left_alone(logged, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export(logged.run_id, logged.uri, tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="cannot be written"):
        export(logged.run_id, logged.uri, tmp_path / "mine.txt" / "memory", force=True)


def test_a_failure_on_the_way_leaves_no_folder(logged, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cedkv.api.folder._provenance", full)
    with pytest.raises(OSError, match="No space left"):
        export(logged.run_id, logged.uri, tmp_path / "memory", force=True)
    assert list(tmp_path.iterdir()) == []


def test_facts_count_the_bytes_of_the_tensors(logged):
    stored = stored_in(logged.folder)
    tensors = load_file(logged.folder / "memory.safetensors")
    injected = [x for name, x in tensors.items() if name.split(".")[0] in ("keys", "values", "bias")]
    assert facts(stored)["bytes_per_document"] * len(stored.documents) == sum(x.numel() * 4 for x in injected)
    assert facts(stored)["slot_gate"] == "affine"


def test_slots_are_shown_with_all_of_their_mass(logged):
    stored = stored_in(logged.folder)
    for name in stored.documents:
        rows = slots_of(stored, name)
        assert [row["slot"] for row in rows] == list(range(len(rows)))
        for row in rows:
            assert sum(row["mass"].values()) == pytest.approx(1.0, abs=1e-5)
            weights = [candidate["weight"] for candidate in row["candidates"]]
            assert weights == sorted(weights, reverse=True)
            assert len(weights) <= stored.meta["topk"]


@pytest.mark.parametrize("anchors", ["shared", "layer", "head"])
@pytest.mark.parametrize("mode", ["v_only", "anchor"])
def test_what_a_slot_is_made_of_is_summed_over_layers_and_heads(tiny, tmp_path, anchors, mode):
    """Against loops over every layer, head and candidate of the bank that was written."""
    bank = tiny.bank(tiny("qwen3"), share="head", anchors=anchors, mode=mode)
    with torch.no_grad():
        noise = torch.randn(bank.logits.shape, generator=torch.Generator().manual_seed(1))
        bank.logits.copy_(2 * noise)
    stored = read_memory(*write_memory(tmp_path, bank, 4, Origin("f", "c")))
    weights, (layers, heads) = bank.mixture(4).weights, bank.logits.shape[1:3]
    for n, name in enumerate(bank.documents):
        for row in slots_of(stored, name):
            s, by_place, mass = row["slot"], Counter(), Counter()
            for layer in range(layers):
                for head in range(heads):
                    at = n, layer % bank.candidates.shape[1], head % bank.candidates.shape[2], s
                    own = weights[n, layer, head, s].tolist() if mode == "v_only" else [1.0]
                    kinds = [ATOM_TYPES[t] for t in bank.candidate_types[at].tolist()]
                    for place, kind, weight in zip(bank.candidates[at].tolist(), kinds, own, strict=False):
                        by_place[place] += weight / (layers * heads)
                        mass[kind] += weight / (layers * heads)
            assert row["mass"] == pytest.approx({kind: m for kind, m in mass.items() if m > 0})
            best = [weight for _, weight in by_place.most_common(4) if weight > 0]
            assert [one["weight"] for one in row["candidates"]] == pytest.approx(best)
            assert row["anchors"] == sorted(set(bank.anchors[n, :, :, s].flatten().tolist()))


def changed(logged, folder, change):
    """A copy whose tensors `change` was done to, with a hash that fits."""
    from hashlib import sha256

    shutil.copytree(logged.folder, folder)
    file, described = folder / "memory.safetensors", folder / "memory.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    meta = json.loads(described.read_text())
    described.write_text(json.dumps(meta | {"tensors_sha256": sha256(file.read_bytes()).hexdigest()}))
    return stored_in(folder)


def test_differences_are_found_where_they_are_and_nowhere_else(logged, tmp_path):
    one = stored_in(logged.folder)
    assert differences(one, one) == []

    def change(tensors):
        tensors["values.3"][1, 0, 2, 3] += 0.25

    other = changed(logged, tmp_path / "other", change)
    (line,) = differences(one, other)
    assert line.startswith("layer 3 values: 1 of 3 documents differ, by 0.25 at most")
    with pytest.raises(UserError, match="logged another memory than this one"):
        check_logged(other, logged.uri)


def test_of_memories_with_other_documents_the_common_ones_are_compared(logged, tmp_path):
    one = stored_in(logged.folder)
    other = changed(logged, tmp_path / "other", lambda _: None)
    described = tmp_path / "other" / "memory.json"
    meta = json.loads(described.read_text())
    names = ["new", *meta["documents"][1:]]
    described.write_text(json.dumps(meta | {"documents": names}))
    kinds = Counter(line.split(":")[0] for line in differences(one, stored_in(tmp_path / "other")))
    assert kinds == {"documents only in the first": 1, "documents only in the second": 1}
    assert other.documents == one.documents
