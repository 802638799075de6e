"""The whole configuration: ``Config`` cannot exist in a state that breaks a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from cedkv.config.base import Count, Section, Seed, section
from cedkv.config.phase3 import Phase3
from cedkv.config.rules import BrokenRulesError, broken_rules
from cedkv.core.hashing import content_hash

EMBEDDED: Final = "embedded"
"""Name of the model that ships inside the package."""

NOT_HASHED: Final = {"tracking", "checkpoint", "base_dir"}
"""Where a run is logged, how often it is saved and where the files lie do not change its numbers; the files' content has
hashes of its own."""

Text = Annotated[str, Field(min_length=1)]


class Model(Section):
    """The frozen language model."""

    name_or_path: Text = EMBEDDED
    """`embedded`, a folder (starting with `.`, `/` or `~`) or a name on the Hugging Face hub"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """weights and activations; losses are computed in float32 at least"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one"""
    trust_remote_code: bool = False
    """run Python code that comes with the model; only for authors you trust"""


class _Data(Section):
    seed: Seed = 3407
    """seed of generation and of every split"""
    document_separator: str = ""
    """text between the document and what follows it in the teacher's context"""
    repeat_bos: bool = True
    """the prompt keeps its BOS token behind the document in the teacher's context"""


class GeneratedData(_Data):
    """Documents of stated facts, questions about them, and OFF families, drawn from a seed."""

    source: Literal["generated"] = "generated"
    """`generated` from a seed, or `jsonl` files"""
    facts_per_document: Annotated[int, Field(ge=1, le=24)] = 8
    """generated: facts a document states"""
    free_sentences: Annotated[int, Field(ge=0, le=64)] = 6
    """generated: sentences among them that state none"""
    on_train_prompts_per_fact: Count = 3
    """generated: phrasings of the question used in training"""
    on_eval_prompts_per_fact: Count = 1
    """generated: other phrasings, kept for evaluation"""


class JsonlData(_Data):
    """A user's own text; the rows are described in JSONL.md."""

    source: Literal["jsonl"]
    """`generated` from a seed, or `jsonl` files"""
    documents: Text
    """jsonl: file of documents"""
    on: Text
    """jsonl: file of ON prompts"""
    off: Text
    """jsonl: file of OFF prompts"""


class Tracking(Section):
    """Where the run is logged."""

    uri: Text | None = None
    """tracking store; null: MLFLOW_TRACKING_URI, else the database under mlruns/"""
    experiment: Text = "cedkv"
    """MLflow experiment"""
    system_metrics: bool = False
    """log the process's CPU and memory at eval ticks, as `system/...`"""
    run_name: Text | None = None
    """name of the run; null: phase, size and seed"""


class Checkpoint(Section):
    """What an interrupted run goes on from (`--resume`)."""

    every: Annotated[int, Field(ge=0)] = 25
    """steps between checkpoints; 0: only where a run is interrupted or its training is done"""


class Config(Section):
    """A resolved configuration: every key has its value, every rule holds."""

    base_dir: Text = "."
    """folder that relative paths start from; left out: the folder of the configuration file"""
    model: Model = section(Model)
    data: Annotated[GeneratedData | JsonlData, Field(discriminator="source")] = section(GeneratedData)
    tracking: Tracking = section(Tracking)
    checkpoint: Checkpoint = section(Checkpoint)
    phase3: Phase3 = section(Phase3)

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = broken_rules(self)
        if broken:
            raise BrokenRulesError(broken)
        return self

    def path(self, written: str) -> Path:
        """A path as the configuration writes it, made absolute; relative ones start at ``base_dir``."""
        return (Path(self.base_dir).expanduser() / Path(written).expanduser()).resolve()

    @property
    def model_source(self) -> str:
        """``model.name_or_path`` with a folder made absolute: ``embedded``, a hub name or a folder."""
        name = self.model.name_or_path
        return str(self.path(name)) if name.startswith((".", "/", "~")) else name


def config_hash(config: Config) -> str:
    """SHA-256 (64 hex digits) of every setting that can change a run's numbers."""
    return content_hash([config.model_dump(mode="json", exclude=NOT_HASHED)])


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors; rules between keys are not part of it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
