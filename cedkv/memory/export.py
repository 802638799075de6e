"""A memory on disk: resolved keys and values, the mixture they come from, and where everything stood.

`memory.safetensors` holds `keys.<layer>` and `values.<layer>` [N, H, S, D], with gates `bias.<layer>` [N, Q, S] for Q query
heads (gains are part of the keys), `logits` and `weights`, and the positions of `anchors` and `candidates` with the
`candidate_types`, as in `MemoryBank`; `memory.json` holds the rest: what it was made with, documents, layers, which layer
looked at a slot's anchors most, and, once it is exported, which run it is of and what the gates said. Nothing is pickled, and
no document is needed to load it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.ledger import ATOM_TYPES
from cedkv.memory.bank import PADDING, MemoryBank
from cedkv.memory.state import States

TENSORS, DESCRIBED = "memory.safetensors", "memory.json"
FORMAT = 5
READABLE = (1, 2, 3, 4, 5)
"""Format 1 knew no biases. A reader of format 1 would pass over them: a gated memory must not look like one. Since format 3
`memory.json` holds the hash of the tensors' file, since format 4 all of `Origin`. Before format 5 anchors and the types of
candidates stood in it, too, the same for all layers and heads."""


_UNREADABLE = (
    *(SafetensorError, OSError, LookupError, TypeError, ValueError),
    *(AttributeError, OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a memory was made with, and what it therefore belongs to.

    `model_settings`: the model's configuration; `repeat_bos` and `document_separator`: how documents and prompts were put
    together. Formats before 4 know the first two only.
    """

    model_fingerprint: str
    config_hash: str
    model: str = ""
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    tokenizer_sha256: str = ""
    repeat_bos: bool = True
    document_separator: str = ""


def write_memory(folder: Path, bank: MemoryBank, k: int, origin: Origin) -> tuple[Path, Path]:
    """Write the memory with its k largest candidates to `folder`; returns the two files."""
    with torch.no_grad():
        states = bank.states(k)
        weights = bank.mixture(k).weights
    tensors = {f"keys.{i}": states.keys[i] for i in states.layers} | {
        f"values.{i}": states.values[i] for i in states.layers
    }
    if states.bias is not None:
        tensors |= {f"bias.{i}": states.bias[i] for i in states.layers}
    tensors |= {"logits": bank.logits.detach(), "weights": weights}
    tensors |= {name: getattr(bank, name) for name in ("anchors", "candidates", "candidate_types")}
    file = folder / TENSORS
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    spec = bank.spec
    meta = {
        "format": FORMAT,
        "tensors_sha256": sha256(file.read_bytes()).hexdigest(),
        "origin": asdict(origin),
        "documents": list(bank.documents),
        "mode": spec.mode,
        "share": spec.share,
        "slot_gate": "none" if bank.gate is None else "affine",
        "value_residual": "learned" if bank.residuals else "none",
        "topk": k,
        "layers": {"injection": list(spec.injection), "mixture": list(spec.mixture)},
        "slots": states.slots,
        "sink_slots": spec.sink_slots,
        "anchors": [
            # A document that fits the context is one chunk, number 0.
            [{"chunk": 0, "layer": layer} for layer in document]
            for document in bank.anchor_layers
        ],
        "atom_types": list(ATOM_TYPES),
    }
    described = folder / DESCRIBED
    described.write_text(json.dumps(meta, indent=1) + "\n")
    return file, described


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """A memory as it was written: what is injected, the documents its states stand for, and what it was made with.

    `meta` is all of `memory.json`; `slot_weights` [N, Lw, Hw, S, J], `anchors` [N, A, H, S], `candidates` [N, Lc, Hc, S, J] and
    their types, places in `atom_types`, are what values were mixed from.
    """

    states: States
    documents: tuple[str, ...]
    origin: Origin
    meta: Mapping[str, Any]
    slot_weights: Tensor
    anchors: Tensor
    candidates: Tensor
    candidate_types: Tensor
    atom_types: tuple[str, ...]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Which run it is of and what was judged of it; empty before it is exported."""
        found: Mapping[str, Any] = self.meta.get("provenance", {})
        return found


def read_memory(tensors: Path, described: Path) -> StoredMemory:
    """Read the two files that `write_memory` wrote.

    Raises:
        UserError: a file is damaged, of another format, or the two do not belong together.
    """
    try:
        content = tensors.read_bytes()
        meta = _meta(described, content)
        stored = load(content)
        memory = _memory(meta, stored)
        slots = int(meta["slots"])
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(
            f"memory {str(tensors)!r} cannot be read ({type(error).__name__}: {error}); export it again from its run"
        ) from error
    wrong = [
        f"{name}.{i}"
        for i in memory.states.layers
        for name, x in _parts(memory.states, i)
        if not _fits(name, x, memory, slots)
    ]
    if wrong:
        raise UserError(
            f"memory {str(tensors)!r}: {wrong[0]} is not finite, or not of {len(memory.documents)} documents and "
            f"{slots} slots as {described.name} says; export it again from its run"
        )
    return memory


def _memory(meta: Mapping[str, Any], stored: Mapping[str, Tensor]) -> StoredMemory:
    layers = [int(layer) for layer in meta["layers"]["injection"]]
    keys, values = ({i: stored[f"{name}.{i}"] for i in layers} for name in ("keys", "values"))
    gated = meta.get("slot_gate", "none") != "none"
    states = States(keys, values, bias={i: stored[f"bias.{i}"] for i in layers} if gated else None)
    documents = tuple(meta["documents"])
    if not all(isinstance(name, str) for name in documents) or len(set(documents)) < len(documents):
        raise ValueError("documents are not names, each its own")
    if meta["format"] < 5:
        stored = _as_5(meta, stored)
    types = tuple(str(name) for name in meta.get("atom_types", ATOM_TYPES))
    _check_described(meta, stored, len(documents), types)
    origin = meta["origin"] if meta["format"] >= 4 else {name: str(meta[name]) for name in _BEFORE_4}
    return StoredMemory(
        states,
        documents,
        Origin(**origin),
        meta,
        slot_weights=stored["weights"],
        anchors=stored["anchors"],
        candidates=stored["candidates"],
        candidate_types=stored["candidate_types"],
        atom_types=types,
    )


def _as_5(meta: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an older format, with anchors and types of candidates, which `memory.json` held."""
    anchors = [[anchor["position"] for anchor in document] for document in meta["anchors"]]
    code = {None: PADDING} | {name: n for n, name in enumerate(ATOM_TYPES)}
    types = [[[code[t] for t in row] for row in document] for document in meta["candidate_types"]]
    return {
        **stored,
        "anchors": torch.tensor(anchors)[:, None, None],
        "candidates": stored["candidates"][:, None, None],
        "candidate_types": torch.tensor(types, dtype=torch.int8)[:, None, None],
    }


def _check_described(
    meta: Mapping[str, Any], stored: Mapping[str, Tensor], documents: int, types: Sequence[str]
) -> None:
    """Raise where what is said of slots is not said of each of them."""
    candidates, weights, slots = (
        stored["candidates"],
        stored["weights"],
        int(meta["slots"]) - int(meta["sink_slots"]),
    )
    if candidates.shape[::3] != (documents, slots):
        raise ValueError(f"candidates are not those of {documents} documents with {slots} mixed slots")
    kinds = stored["candidate_types"]
    if kinds.shape != candidates.shape or ((kinds < PADDING) | (kinds >= len(types))).any():
        raise ValueError("candidate_types are not those of the candidates")
    anchors = stored["anchors"]
    if anchors.ndim != 4 or anchors.shape[::3] != (documents, slots) or (anchors < 0).any():
        raise ValueError(f"anchors are not positions of {documents} documents with {slots} mixed slots")
    if [len(document) for document in meta["anchors"]] != [slots] * documents:
        raise ValueError("anchors have no layer, or one too many")
    fits = [c in {1, w} for c, w in zip(candidates.shape, weights.shape, strict=False)]
    if weights.ndim != 5 or weights.shape[3:] != candidates.shape[3:] or not all(fits):
        raise ValueError("weights and candidates have other shapes")
    for name in ("mode", "share", "topk"):
        meta[name]


_BEFORE_4 = ("model_fingerprint", "config_hash")


def _meta(described: Path, content: bytes) -> dict[str, Any]:
    """What `described` says, where it is of a format that is read and belongs to the tensors `content`."""
    meta: dict[str, Any] = json.loads(described.read_text())
    if meta["format"] not in READABLE:
        raise UserError(
            f"memory {str(described)!r} has format {meta['format']}; this version reads {READABLE}"
        )
    hashed = meta["format"] >= 3 or "tensors_sha256" in meta
    if hashed and meta["tensors_sha256"] != sha256(content).hexdigest():
        raise UserError(
            f"memory {str(described)!r} names another hash than its tensors have: the two do not belong together, or one was "
            "changed; export it again from its run"
        )
    return meta


def _parts(states: States, layer: int) -> Iterator[tuple[str, Tensor]]:
    yield from (("keys", states.keys[layer]), ("values", states.values[layer]))
    if states.bias is not None:
        yield "bias", states.bias[layer]


def _fits(name: str, x: Tensor, memory: StoredMemory, slots: int) -> bool:
    axes = 3 if name == "bias" else 4
    shape = x.ndim == axes and (x.shape[0], x.shape[2]) == (len(memory.documents), slots)
    return shape and bool(x.isfinite().all())
