"""A logged run as what can be computed again: its configuration, its data, its model, its memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cedkv import ledger
from cedkv.config import Config, config_hash, from_logged
from cedkv.core.errors import UserError
from cedkv.data.build import build_corpus
from cedkv.data.records import Corpus, hashes
from cedkv.memory.export import Origin, StoredMemory, read_memory
from cedkv.models.identity import settings_of, tokenizer_hash
from cedkv.models.load import LoadedModel, load_model
from cedkv.tracking.reader import fetch
from cedkv.tracking.record import RunRecord


def config_of(record: RunRecord) -> Config:
    """The configuration of a run.

    Raises:
        UserError: the run logged none, or one that means something else to this version of cedkv.
    """
    if record.config is None:
        raise UserError(f"run {record.run_id} logged no readable {ledger.CONFIG_RESOLVED}; name another run")
    config = from_logged(record.config, f"{ledger.CONFIG_RESOLVED} of run {record.run_id}")
    logged, found = record.tags.get(ledger.TAG_CONFIG_HASH), config_hash(config)
    if logged != found:
        raise UserError(
            f"the configuration of run {record.run_id} has hash {found[:12]} under this version of cedkv, but the run "
            f"logged {str(logged)[:12]}: check out its commit ({record.tags.get(ledger.TAG_GIT_COMMIT, 'unknown')})"
        )
    return config


def corpus_of(record: RunRecord, config: Config) -> Corpus:
    """The data of a run, made or read again; `UserError` where it is not what the run used."""
    corpus = build_corpus(config)
    for part, content in hashes(corpus).items():
        logged = record.tags.get(f"{ledger.HASH_TAG_PREFIX}{part}")
        if logged != content["sha256"]:
            raise UserError(
                f"data of run {record.run_id}: {part} has hash {content['sha256'][:12]} now, but the run used "
                f"{str(logged)[:12]}: restore the files it read, or check out its commit"
            )
    return corpus


def model_of(record: RunRecord, config: Config) -> LoadedModel:
    """The model of a run; `UserError` where other weights lie at that place now."""
    loaded = load_model(
        config.model_source,
        dtype=config.model.dtype,
        device=config.model.device,
        trust_remote_code=config.model.trust_remote_code,
    )
    logged = record.tags.get(ledger.TAG_MODEL)
    if loaded.fingerprint != logged:
        raise UserError(
            f"model {config.model.name_or_path!r} has fingerprint {loaded.fingerprint[:12]} now, but run "
            f"{record.run_id} used {str(logged)[:12]}: restore those weights"
        )
    return loaded


def memory_of(record: RunRecord, uri: str) -> StoredMemory:
    """The memory that a run logged; `UserError` where it has none, or one that was made with something else."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (ledger.MEMORY_TENSORS, ledger.MEMORY_META)
        memory = read_memory(*fetch(record.run_id, paths, uri, Path(folder)))
    check_memory(memory, record)
    return memory


def check_memory(memory: StoredMemory, record: RunRecord) -> None:
    """Raise `UserError` where a memory that a run holds is not the run's own."""
    for name, found, tag in (
        ("model", memory.origin.model_fingerprint, ledger.TAG_MODEL),
        ("configuration", memory.origin.config_hash, ledger.TAG_CONFIG_HASH),
    ):
        if found != record.tags.get(tag):
            raise UserError(
                f"the memory of run {record.run_id} was made with another {name} ({found[:12]}) than the run "
                f"({str(record.tags.get(tag))[:12]}): its log was changed, nothing of it is used"
            )


def origin_of(loaded: LoadedModel, config: Config) -> Origin:
    """What a memory of this model and configuration is made with."""
    return Origin(
        model_fingerprint=loaded.fingerprint,
        config_hash=config_hash(config),
        model=config.model.name_or_path,
        model_settings=settings_of(loaded.model),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        tokenizer_sha256=tokenizer_hash(loaded.tokenizer),
        repeat_bos=config.data.repeat_bos,
        document_separator=config.data.document_separator,
    )
