"""A memory on disk: resolved keys and values, the mixture they come from, and where everything stood.

`memory.safetensors` holds `keys.<layer>` and `values.<layer>` [N, H, S, D], `logits` and `candidates`;
`memory.json` holds the rest. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from cedkv.memory.bank import MemoryBank

FORMAT = 1


def write_memory(
    folder: Path, bank: MemoryBank, k: int, fingerprint: str, configuration: str
) -> tuple[Path, Path]:
    """Write the memory with its k largest candidates to `folder`; returns the two files."""
    with torch.no_grad():
        states = bank.states(k)
        weights = bank.mixture(k).weights
    tensors = {f"keys.{i}": states.keys[i] for i in states.layers} | {
        f"values.{i}": states.values[i] for i in states.layers
    }
    tensors |= {"logits": bank.logits.detach(), "weights": weights, "candidates": bank.candidates}
    file = folder / "memory.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    spec = bank.spec
    meta = {
        "format": FORMAT,
        "model_fingerprint": fingerprint,
        "config_hash": configuration,
        "documents": list(bank.documents),
        "mode": spec.mode,
        "share": spec.share,
        "topk": k,
        "layers": {"injection": list(spec.injection), "mixture": list(spec.mixture)},
        "slots": states.slots,
        "sink_slots": spec.sink_slots,
        "anchors": [
            [{"chunk": chunk, "layer": layer, "position": position} for chunk, layer, position in document]
            for document in bank.anchors
        ],
        "candidate_types": [[list(row) for row in document] for document in bank.candidate_types],
    }
    described = folder / "memory.json"
    described.write_text(json.dumps(meta, indent=1) + "\n")
    return file, described
