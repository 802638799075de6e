"""What a run leaves for MLflow's own pages: a name that says something, its data as inputs, its memory as a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cedkv import ledger
from cedkv.config import Config
from cedkv.core.errors import UserError
from cedkv.data.records import Corpus, OffPrompt, hashes
from cedkv.release.measure import OF_MEMORY
from cedkv.tracking.entities import DataPart, log_data, log_memory

_CONTEXTS = {
    "documents": "training",
    "on_train": "training",
    "on_eval": "evaluation",
    "off_train": "training",
    "stress": "evaluation",
    "sealed": "certification",
}


def run_name(config: Config, phase: int, reproduces: str | None = None) -> str:
    """What a run is called where its configuration gives it no name, e.g. ``phase 3 · 64 x 8 gated · seed 3407``."""
    phase3 = config.phase3
    gated = " gated" if phase3.mix.slot_gate != "none" else ""
    model = config.model.name_or_path.rstrip("/").rpartition("/")[2]
    parts = [
        f"phase {phase}",
        f"{phase3.eval.on_samples} x {phase3.memory.slots}{gated}",
        *([] if model == "embedded" else [model]),
        f"repeats {reproduces[:8]}" if reproduces else f"seed {phase3.train.seed}",
    ]
    return " · ".join(parts)


def note_data(run_id: str, uri: str, config: Config, corpus: Corpus) -> str:
    """Note the six parts of a run's data as its inputs; why that failed, or nothing."""
    content = hashes(corpus)
    parts = [
        DataPart(name, content[name]["sha256"], _CONTEXTS[name], _source(config), _profile(rows))
        for name, rows in corpus.parts().items()
        if rows
    ]
    try:
        log_data(run_id, uri, parts)
    except UserError as error:
        return f"the run's data is not among its inputs: {error}"
    return ""


def enter_model(run_id: str, uri: str, config: Config) -> str:
    """Enter the memory of a run that finished as a model; why that failed, or nothing."""
    phase3 = config.phase3
    params = {
        "model": config.model.name_or_path,
        "documents": str(phase3.eval.on_samples),
        "slots": str(phase3.memory.slots),
        "mix.mode": phase3.mix.mode,
        "mix.share": phase3.mix.share,
        "mix.slot_gate": phase3.mix.slot_gate,
        "mix.value_residual": phase3.mix.value_residual,
        "layer_scope.injection": str(phase3.layer_scope.injection),
    }
    try:
        log_memory(run_id, uri, (ledger.MEMORY_TENSORS, ledger.MEMORY_META), params, OF_MEMORY)
    # OSError: a full disk, or a server that refuses a file, which `requests` reports as one.
    except (UserError, OSError) as error:
        return f"the memory is not among the models: {error}"
    return ""


def _source(config: Config) -> dict[str, Any]:
    """Where the data is from, as far as its configuration says."""
    return config.data.model_dump(mode="json")


def _profile(rows: Any) -> dict[str, Any]:
    """How many rows there are, of OFF prompts of each family."""
    families = Counter(row.family for row in rows if isinstance(row, OffPrompt))
    return {"rows": len(rows), **({"families": dict(families.most_common())} if families else {})}
