"""A run from configuration to verdict: prepare, train, evaluate, log, publish."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cedkv import ledger
from cedkv.config import Config, config_hash, dump_yaml
from cedkv.core.losses import kl_divergence
from cedkv.core.team import ALONE
from cedkv.data.batching import every_nth, pad_left
from cedkv.data.findings import OFF_PROMPTS_PER_SLOT
from cedkv.data.records import hashes
from cedkv.evaluate import SlotMass, next_log_probs
from cedkv.injection import inject
from cedkv.injection.trunk import Shortcut
from cedkv.memory.export import write_memory
from cedkv.models.allocator import keep_freed_memory
from cedkv.release.gates import worst_prompts
from cedkv.release.measure import on_metrics, stress_metrics
from cedkv.tracking import lineage
from cedkv.tracking.ledgers import enter_explored
from cedkv.tracking.store import check_store, project_root, resolve_uri
from cedkv.tracking.webhook import VARIABLE, Webhook
from cedkv.tracking.writer import RunWriter
from cedkv.train.clock import Clock, RunLog, TimedLog
from cedkv.train.desk import attach_page
from cedkv.train.dual import dual_metrics
from cedkv.train.experiment import Experiment, prepare
from cedkv.train.follow import Follower, by_first
from cedkv.train.launch import join
from cedkv.train.logged import origin_of
from cedkv.train.loop import Trainer
from cedkv.train.mlflow_pages import enter_model, note_data, run_name
from cedkv.train.outcome import Outcome
from cedkv.train.publish import publish
from cedkv.train.resume import Resumption, Saver, check_room, facts_of, opened
from cedkv.train.tables import off_slot_mass, on_rows, stress_rows
from cedkv.train.trial import Trial, ignore

LINE_EVERY = 10
"""Steps between two lines of progress where no terminal shows a bar."""


def run_training(
    config: Config,
    *,
    phase: int,
    explore: bool = False,
    progress: bool = True,
    reproduces: str | None = None,
    resumed: Resumption | None = None,
    trial: Trial | None = None,
) -> str:
    """Run Phase 2 (the baseline: anchors assembled and evaluated) or Phase 3 (training), and log all of it.

    Args:
        config: resolved; `phase` and strictness are part of it.
        explore: flag the run for the exploration milestone.
        reproduces: id of the run that this one repeats; noted in its tags.
        progress: show where it stands on the error stream.
        resumed: go on with an interrupted run; `config` is its own. The caller holds its checkpoints open.
        trial: the run is one of a study, trained by this process alone. It is not saved: a trial that is interrupted is run anew.

    Returns:
        The id of the run; empty in processes of a launch that are not the first.

    Raises:
        UserError: anything the user can mend; nothing is logged then.
    """
    clock = Clock()
    with clock.part("load"):
        team = join(os.environ) if trial is None else ALONE
        progress = progress and team.first
        uri = resolve_uri(config.tracking.uri, os.environ, project_root(Path.cwd()))
        by_first(team, partial(_check_places, uri))
        hook = _webhook(os.environ) if team.first else None
    keep_freed_memory()
    torch.manual_seed(config.phase3.train.seed)
    _say(progress, f"phase {phase}: loading, encoding, asking the teacher ...")
    experiment = (prepare if trial is None else trial.prepare)(config, phase, clock, team)
    _say_detours(experiment, progress)
    with clock.part("load"):
        tags = tags_of(experiment, phase, explore=explore)
    if not team.first:
        return _follow(experiment, phase, clock)
    if reproduces is not None:
        tags[ledger.TAG_REPRODUCES] = reproduces
    if resumed is not None:
        resumed.check(tags)
        tags |= resumed.tags
    if trial is not None:
        tags |= trial.tags
    called = config.tracking.run_name or run_name(config, phase, reproduces)
    parameters = config.model_dump(mode="json", exclude={"base_dir"})
    # Opening and closing the run is time for the log; between them whatever is not another part is `finish`.
    # The checkpoints are let go last: until the run has ended nobody else may go on with it.
    with (
        ExitStack() as locked,
        hook or nullcontext(),
        clock.part("log"),
        RunWriter(
            uri,
            config.tracking.experiment,
            name=called,
            tags=tags,
            params=parameters,
            resumes=None if resumed is None else resumed.point,
        ) as run,
        clock.part("finish"),
    ):
        if trial is not None:
            trial.opened(run.run_id)
        checkpoints = None if trial else locked.enter_context(opened(run.run_id, uri, resumed))
        log = TimedLog(run, clock)
        if explore:
            with clock.part("log"):
                enter_explored(run.experiment_id, run.run_id, run.start_time_ms, uri)
        _log_inputs(log, config, experiment)
        with clock.part("log"):
            _warn(note_data(run.run_id, uri, config, experiment.corpus), progress)
        warn = trial.warn if trial else partial(_tell, hook, run.run_id, called)
        watch = trial.watch if trial else ignore
        trainer = Trainer(experiment, log, warn=warn, clock=clock, watch=watch)
        saver = Saver(run, checkpoints, trainer, facts_of(config, team.size, tags), resumed)
        _train_and_log(run, log, saver, phase, progress)
    if checkpoints is not None:
        checkpoints.clear()
    with clock.part("finish"):
        publish(run.run_id, uri)
        if trial is None:
            _show(run.run_id, uri, config, progress)
    _say(progress, clock.split())
    return run.run_id


def _check_places(uri: str) -> None:
    """Raise `UserError` where the log or checkpoints could not be written, before anything is computed."""
    check_store(uri)
    check_room(uri)


def _follow(experiment: Experiment, phase: int, clock: Clock) -> str:
    """Share the work of the process that has the run; its id is nobody's business here."""
    with Follower() as run:
        trainer = Trainer(experiment, run, warn=lambda _: None, clock=clock)
        if phase == 2:
            _baseline(trainer)
        else:
            _train(Saver(run, None, trainer, {}, None), progress=False)
    return run.run_id


def _train_and_log(run: RunWriter, log: TimedLog, saver: Saver, phase: int, progress: bool) -> None:
    """Train, and log what came of it; traces, and a memory that numbers went bad under, also where the training failed."""
    trainer, experiment = saver.trainer, saver.trainer.experiment
    try:
        outcome = _baseline(trainer) if phase == 2 else _train(saver, progress)
        kept = "last" if outcome.kept is None else f"best_feasible@{outcome.kept.step}"
        run.set_tags({ledger.TAG_KEPT: kept})
        if (step := trainer.source.left_at) is not None:
            run.set_tags({ledger.TAG_SOURCE_LOSS: f"auto, hf from step {step}"})
        if phase != 2:
            log.log_metrics(
                dual_metrics(trainer.traces.dual, trainer.rule, trainer.phase3.loss.lambda_off), outcome.step
            )
        _log_result(log, experiment, outcome)
    finally:
        if trainer.delimiters.first_step is not None:
            run.set_tags({ledger.TAG_DELIMITER: str(trainer.delimiters.first_step)})
        _log_traces(log, trainer)
        if trainer.finite.lost:
            _log_memory(log, experiment, trainer.traces.topk[-1]["topk"])
    log.log_metrics(trainer.clock.metrics(), outcome.step)


def _show(run_id: str, uri: str, config: Config, progress: bool) -> None:
    """What only people read: wanting one of these, no run fails."""
    _warn(attach_page(run_id, uri), progress)
    _warn(enter_model(run_id, uri, config), progress)


def _warn(why_not: str, progress: bool) -> None:
    if why_not:
        _say(progress, f"warning: {why_not}")


def _tell(hook: Webhook | None, run_id: str, called: str, message: str) -> None:
    """Warn whoever watches the terminal, and whoever is behind the webhook."""
    _say(True, f"warning: {message}")
    if hook is not None:
        hook.send({"run_id": run_id, "run_name": called, "level": "warning", "message": message})


def _webhook(env: Mapping[str, str]) -> Webhook | None:
    """Where warnings are sent, too, if anywhere."""
    url = env.get(VARIABLE)
    return Webhook(url, lambda message: _say(True, f"warning: {message}")) if url else None


def _say(progress: bool, message: str) -> None:
    if progress:
        sys.stderr.write(f"cedkv: {message}\n")
        sys.stderr.flush()


def _say_detours(experiment: Experiment, progress: bool) -> None:
    family = experiment.model.config.model_type
    if not experiment.teacher_cached:
        _say(
            progress,
            f"warning: model family {family!r} does not go on from its key/value cache as it reads at once: the teacher "
            "read every document anew for every prompt, which is slow",
        )
    slots = len(experiment.bank.documents) * experiment.config.phase3.memory.slots
    prompts = len(experiment.off)
    if experiment.bank.gate is not None and prompts < OFF_PROMPTS_PER_SLOT * slots:
        _say(
            progress,
            f"warning: the gates of {slots} slots start from {prompts} OFF training prompts; what comes near a slot and is not "
            f"among them will pass: raise phase3.eval.off_samples to {OFF_PROMPTS_PER_SLOT * slots} or more",
        )
    if experiment.shortcut is Shortcut.PLAIN:
        _say(
            progress,
            f"warning: model family {family!r} allows no shortcut: every pass runs the whole model, which is slow",
        )


def tags_of(experiment: Experiment, phase: int, *, explore: bool = False) -> dict[str, str]:
    """Every tag a run starts with: what it is, where its numbers come from, and the hashes of what it reads."""
    config = experiment.config
    runtime, loss = config.phase3.runtime, config.phase3.loss
    contents = hashes(experiment.corpus)
    tags = {
        ledger.TAG_SCHEMA: ledger.SCHEMA_VERSION,
        ledger.TAG_PHASE: str(phase),
        ledger.TAG_CONFIG_HASH: config_hash(config),
        ledger.TAG_MODEL: experiment.loaded.fingerprint,
        ledger.TAG_WORLD_SIZE: str(experiment.team.size),
        ledger.TAG_POLICY_MODE: runtime.policy_mode,
        ledger.TAG_STRICT_HF: str(runtime.strict_hf).lower(),
        ledger.TAG_TEACHER: "cached" if experiment.teacher_cached else "whole",
        ledger.TAG_SHORTCUT: experiment.shortcut.name.lower(),
        # The stress metrics have one source in the code; the dual's is configured.
        ledger.TAG_SOURCE_P99: ledger.SOURCE_FIXED,
        ledger.TAG_SOURCE_LOSS: loss.source,
        ledger.TAG_SOURCE_LAMBDA: config.phase3.train.lambda_off.dual.metric_source,
        **{f"{ledger.HASH_TAG_PREFIX}{name}": content["sha256"] for name, content in contents.items()},
        **lineage.collect(threads=torch.get_num_threads()),
    }
    if explore:
        tags[config.phase3.milestone.explore.flag] = ledger.TRUE
    return tags


def _log_inputs(run: RunLog, config: Config, experiment: Experiment) -> None:
    fixed = config.phase3.eval.off_fixed_stress
    contents: dict[str, Any] = hashes(experiment.corpus)
    contents["stress"] |= {
        "size": contents["stress"]["count"],
        "seed": fixed.seed,
        "sampling": fixed.sampling,
        "definition": fixed.definition,
    }
    run.log_text(ledger.CONFIG_RESOLVED, dump_yaml(config))
    run.log_jsonl(ledger.STRESS_SET, (row.row() for row in experiment.corpus.stress))
    run.log_json(ledger.DATA_SPEC, {"schema": 1, **contents})


def _baseline(trainer: Trainer) -> Outcome:
    """Phase 2: nothing is trained; the anchors' stress is measured once."""
    k = trainer.phase3.candidate.pool_size
    return Outcome(0, k, trainer.measured(k))


def _train(saver: Saver, progress: bool) -> Outcome:
    """Train, from where a resumed run stood; the run is saved meanwhile, and a signal waits until it is."""
    saver.begin()
    trainer = saver.trainer
    steps = trainer.phase3.train.steps
    hidden = not (progress and sys.stderr.isatty())
    bar = tqdm(total=steps, initial=trainer.done, desc="phase 3", unit="step", disable=hidden)

    def after_step(step: int) -> None:
        bar.update()
        done = step + 1
        if bar.disable and progress and (done % LINE_EVERY == 0 or done == steps):
            _say(True, _line(done, steps, trainer))
        saver.after_step()

    with bar:
        outcome = trainer.run(after_step)
    saver.end()
    return outcome


def _line(done: int, steps: int, trainer: Trainer) -> str:
    last, dual = trainer.traces.loss[-1], trainer.traces.dual[-1]
    losses = "  ".join(f"{name} {last[key]:.4f}" for name, key in _LINE_LOSSES.items())
    return f"step {done}/{steps}  {losses}  p99 {dual['p99_raw']:.4g}  lambda_off {dual['lambda_off']:.3f}"


_LINE_LOSSES: Mapping[str, str] = {"on": ledger.LOSS_ON, "off": ledger.LOSS_OFF, "str": ledger.LOSS_STR}


def _log_result(run: RunLog, experiment: Experiment, outcome: Outcome) -> None:
    """The memory, the per-prompt tables, and the scalars the gates judge."""
    states = experiment.bank.states(outcome.k).detach()
    stress_table = stress_rows(experiment, outcome.stress)
    mass = SlotMass(1, [])
    on_table = on_rows(experiment, states, mass)
    run.log_jsonl(ledger.TABLE_STRESS, map(asdict, stress_table))
    run.log_jsonl(ledger.TABLE_ON, map(asdict, on_table))
    run.log_json(ledger.STRESS_TOP, [asdict(row) for row in worst_prompts(stress_table)])
    run.log_metrics(
        {
            ledger.NULL_INJECTION_MAX_KL: null_injection_max_kl(experiment, outcome.k),
            ledger.TEACHER_CACHE_MAX_KL: experiment.teacher_cache_max_kl,
            ledger.TEACHER_MAX_ERROR: experiment.teacher_max_error,
            ledger.SHORTCUT_MAX_KL: experiment.shortcut_max_error,
            **on_metrics(on_table),
            **stress_metrics(stress_table),
            ledger.SLOT_MASS_ON: mass.mean,
            ledger.SLOT_MASS_OFF: off_slot_mass(experiment, states),
            **{ledger.TEACHER_READS_PREFIX + kind: share for kind, share in experiment.teacher_reads.items()},
        },
        outcome.step,
    )
    _log_memory(run, experiment, outcome.k)


def _log_memory(run: RunLog, experiment: Experiment, k: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensors, meta = write_memory(
            Path(folder),
            experiment.bank,
            k,
            origin_of(experiment.loaded, experiment.config),
        )
        run.log_file(ledger.MEMORY_TENSORS, tensors)
        run.log_file(ledger.MEMORY_META, meta)


@torch.no_grad()
def null_injection_max_kl(experiment: Experiment, k: int) -> float:
    """Largest KL between the bare model and the model with an empty memory, after a real memory was injected and left.

    Measured on a fixed sample of OFF training prompts; the gate asks for exactly 0.
    """
    model, states = experiment.model, experiment.bank.states(k).detach()
    rows = experiment.config.phase3.eval.batch_rows
    prompts = [row.prompt for row in every_nth(experiment.encoded.off_train)]
    worst = 0.0
    for start in range(0, len(prompts), rows):
        batch = pad_left(prompts[start : start + rows], model.device)
        base = next_log_probs(model, batch)
        one = states.select(torch.tensor([0], device=model.device))
        with inject(model, one):
            next_log_probs(model, batch)
        with inject(model, one.empty()):
            null = next_log_probs(model, batch)
        worst = max(worst, kl_divergence(null, base).max().item())
    return worst


def _log_traces(run: RunLog, trainer: Trainer) -> None:
    traces = trainer.traces
    if not traces.dual:
        return
    for name, rows in (
        (ledger.LOSS_CURVE, traces.loss),
        (ledger.LAMBDA_TRACE, traces.dual),
        (ledger.TOPK_TRACE, traces.topk),
        (ledger.ATOM_TYPE_MASS, traces.mass),
        (ledger.WARN_TRACE, traces.warn),
    ):
        run.log_json(name, rows)
    run.log_jsonl(ledger.DELIMITER_WARNINGS, trainer.delimiters.changes)
    run.log_jsonl(ledger.DELIMITER_SLOTS, traces.slots)
    run.log_jsonl(ledger.PROXY_SCATTER, traces.proxy)
