"""What a memory's folder holds, as plain values; and in what two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cedkv.api.memory import Memory
from cedkv.memory.export import StoredMemory


def slots_of(stored: StoredMemory, document: str) -> list[dict[str, Any]]:
    """A row for every slot of a document: its anchors, its share of each atom type, its candidates with the largest weights.

    Positions are in the document, shares are means over the layers and heads that have their own. Sinks, which are not mixed,
    come without.
    """
    n = stored.documents.index(document)
    mixed = stored.meta["mode"] != "anchor"
    rows = []
    for s in range(stored.candidates.shape[3]):
        weights = stored.slot_weights[n, :, :, s]
        candidates, types = (
            x[n, :, :, s].expand_as(weights).flatten() for x in (stored.candidates, stored.candidate_types)
        )
        share = weights.flatten() / weights.shape[:2].numel()
        if not mixed:
            candidates, types, share = (
                x.view_as(weights)[..., 0].flatten() for x in (candidates, types, share)
            )
            share = torch.full_like(share, 1 / len(share))
        by_place = _summed(candidates.tolist(), share.tolist())
        mass = _summed([stored.atom_types[t] for t in types.tolist()], share.tolist())
        rows.append(
            {
                "slot": s,
                "anchors": sorted(set(stored.anchors[n, :, :, s].flatten().tolist())),
                "mass": mass,
                "candidates": [{"position": p, "weight": w} for p, w in list(by_place.items())[:4]],
            }
        )
    return rows


def _summed(names: Sequence[Any], shares: Sequence[float]) -> dict[Any, float]:
    """The sum of each name's shares, the largest first; none that are zero."""
    found: dict[Any, float] = {}
    for name, share in zip(names, shares, strict=True):
        if share > 0:
            found[name] = found.get(name, 0.0) + share
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def facts(stored: StoredMemory) -> dict[str, Any]:
    """What a memory is, flat: for people, and for programs as JSON."""
    memory = Memory(stored.states, stored.documents, stored.origin)
    key = next(iter(stored.states.keys.values()))
    provenance = stored.provenance
    return {
        "format": stored.meta["format"],
        "model": stored.origin.model or None,
        "model_fingerprint": stored.origin.model_fingerprint,
        "tokenizer_sha256": stored.origin.tokenizer_sha256 or None,
        "config_hash": stored.origin.config_hash,
        "dtype": str(key.dtype).removeprefix("torch."),
        "documents": len(stored.documents),
        "layers": stored.meta["layers"],
        "mode": stored.meta["mode"],
        "share": stored.meta["share"],
        "own_anchors": dict(zip(("layers", "heads"), stored.anchors.shape[1:3], strict=True)),
        "slot_gate": stored.meta.get("slot_gate", "none"),
        "value_residual": stored.meta.get("value_residual", "none"),
        "topk": stored.meta["topk"],
        "slots": stored.meta["slots"],
        "kv_heads": key.shape[1],
        "head_size": key.shape[3],
        "bytes_per_document": memory.bytes_per_document,
        "run_id": provenance.get("run_id"),
        "verdict": provenance.get("verdict"),
        "metrics": provenance.get("metrics"),
    }


def differences(one: StoredMemory, other: StoredMemory) -> list[str]:
    """What differs between two memories, a line each; none where they inject the same into the same model."""
    found = [f"{name}: {_short(a)} against {_short(b)}" for name, a, b in _pairs(one, other) if a != b]
    gone = [name for name in one.documents if name not in other.documents]
    new = [name for name in other.documents if name not in one.documents]
    found += [f"documents only in the first: {_listed(gone)}"] if gone else []
    found += [f"documents only in the second: {_listed(new)}"] if new else []
    for layer in sorted({*one.states.layers} & {*other.states.layers}):
        found += _tensor_differences(one, other, layer)
    return found


def _pairs(one: StoredMemory, other: StoredMemory) -> list[tuple[str, Any, Any]]:
    first, second = facts(one), facts(other)
    aside = ("run_id", "verdict", "metrics", "documents")
    return [(name, first[name], second[name]) for name in first if name not in aside]


def _tensor_differences(one: StoredMemory, other: StoredMemory, layer: int) -> list[str]:
    """Of the documents that both have, at one layer: what differs, in how many of them, and by how much at most."""
    common = [name for name in one.documents if name in other.documents]
    lines = []
    for name in ("keys", "values", "bias"):
        parts = [getattr(memory.states, name) for memory in (one, other)]
        if not common or any(part is None for part in parts):
            continue
        a, b = (
            part[layer][[memory.documents.index(d) for d in common]]
            for part, memory in zip(parts, (one, other), strict=True)
        )
        if a.shape != b.shape:
            lines.append(f"layer {layer} {name}: shape {tuple(a.shape)} against {tuple(b.shape)}")
        elif not torch.equal(a, b):
            apart = (a.float() - b.float()).flatten(1)
            moved = int((apart != 0).any(1).sum())
            size = b.float().norm().clamp_min(1e-30)
            lines.append(
                f"layer {layer} {name}: {moved} of {len(common)} documents differ, by {apart.abs().max():.3g} at most "
                f"({apart.norm() / size:.2%} of their size)"
            )
    return lines


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
