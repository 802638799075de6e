"""Open the sealed set once, for one logged memory, and log what it proves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

from cedkv import ledger
from cedkv.config import Config
from cedkv.core.errors import UserError
from cedkv.core.verdict import Verdict
from cedkv.data.encode import encode_off
from cedkv.data.records import hashes
from cedkv.evaluate import choose_shortcut, probe_of, stress
from cedkv.injection.storage import Room
from cedkv.injection.trunk import Trunk
from cedkv.models.allocator import keep_freed_memory
from cedkv.release.certify import Attempt, is_affordable
from cedkv.tracking.attach import attach
from cedkv.tracking.encode import encode_json
from cedkv.tracking.ledgers import enter_certified
from cedkv.tracking.reader import read_run
from cedkv.tracking.record import RunRecord
from cedkv.train.desk import attach_page
from cedkv.train.experiment import SHORTCUT_TOLERANCE
from cedkv.train.logged import config_of, corpus_of, memory_of, model_of
from cedkv.train.publish import attempts, publish


class BudgetSpentError(UserError):
    """The attempts made before have spent the error probability of the experiment."""


def certify(run_id: str, uri: str, say: Callable[[str], None] = lambda _: None) -> Verdict:
    """Measure the memory of a finished run on the sealed set, log the certificate and judge the run again.

    The attempt is entered in the experiment's ledger before the set is opened, and stays there however it ends. The
    certificate holds one number per prompt and none of the prompts: the set stays sealed for the next attempt.

    Raises:
        BudgetSpentError: no attempt is left.
        UserError: the run cannot be certified, or its data, model or memory are not what it logged.
    """
    record = read_run(run_id, uri)
    _check_certifiable(record)
    config = config_of(record)
    keep_freed_memory()
    say("making the sealed set, loading model and memory ...")
    corpus = corpus_of(record, config)
    loaded = model_of(record, config)
    memory = memory_of(record, uri)
    states = memory.states.to(loaded.device)
    prompts, known = (
        encode_off(loaded.tokenizer, rows, loaded.context_length)
        for rows in (corpus.sealed, corpus.off_train)
    )
    probe = probe_of([row.prompt for row in known])
    shortcut, _ = choose_shortcut(loaded.model, states, probe, SHORTCUT_TOLERANCE)
    attempt = _pay(record, config, uri)
    say(f"attempt {attempt.id}: {len(prompts)} prompts under {states.count} states ...")
    rows = config.phase3.eval.batch_rows
    sealed = Trunk(
        loaded.model,
        [row.prompt for row in prompts],
        states.layers[0],
        shortcut=shortcut,
        batch_rows=rows,
        room=Room(config.phase3.eval.trunk_memory_gib),
    )
    deltas = stress(loaded.model, states, sealed, batch_rows=rows).delta
    certificate = {
        "schema": 1,
        "run_id": record.run_id,
        "attempt_id": attempt.id,
        "delta": config.phase3.certification.delta,
        "max_attempts": config.phase3.certification.max_attempts,
        "tau": config.phase3.thresholds.off_delta_p99_max,
        "set": hashes(corpus)["sealed"],
        "model_fingerprint": loaded.fingerprint,
        "deltas": deltas.tolist(),
    }
    attach(record.run_id, uri, {ledger.CERTIFICATE: encode_json(certificate)[0]})
    verdict = publish(record.run_id, uri)
    attach_page(record.run_id, uri)
    return verdict


def _check_certifiable(record: RunRecord) -> None:
    if (record.status, record.lifecycle) != ("FINISHED", "active"):
        raise UserError(
            f"run {record.run_id} is {record.status}, {record.lifecycle}: only the memory of a finished run that was not "
            "deleted can be certified; name another run"
        )
    if ledger.TAG_TRIAL in record.tags:
        raise UserError(
            f"run {record.run_id} is a trial of study {record.tags.get(ledger.TAG_STUDY)!r}, and what was chosen among trials is never "
            "held against the sealed set: train the best configuration anew, and certify that run"
        )
    if not record.data_spec or not record.data_spec.get("sealed", {}).get("count"):
        raise UserError(
            f"run {record.run_id} set no prompts aside: train with phase3.eval.off_sealed.size over 0 to certify"
        )


def _pay(record: RunRecord, config: Config, uri: str) -> Attempt:
    """Enter an attempt in the ledger. Of two that meet, the later one may find the budget spent; it is entered, too."""
    rules = config.phase3.certification
    share = rules.delta / rules.max_attempts
    _check_affordable(share, rules.delta, attempts(record.experiment_id, uri))
    mine = Attempt(uuid.uuid4().hex, record.run_id, time.time_ns() // 1_000_000, share)
    entry = {"run_id": mine.run_id, "started_ms": mine.started_ms, "share": mine.share}
    enter_certified(record.experiment_id, mine.id, entry, uri)
    made = attempts(record.experiment_id, uri)
    _check_affordable(share, rules.delta, [other for other in made if other.order < mine.order])
    return mine


def _check_affordable(share: float, delta: float, made: Sequence[Attempt]) -> None:
    if not is_affordable(share, delta, made):
        raise BudgetSpentError(
            f"the sealed set was opened {len(made)} times in this experiment, which has spent the error probability "
            f"delta = {delta:g}: certify in a new experiment, with new sealed prompts (data.seed)"
        )
