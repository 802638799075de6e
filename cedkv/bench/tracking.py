"""What logging costs a training step: a real step of configs/base.yaml, a real run in a real SQLite store.

The loop writes a step's metrics to the run's journal, and a thread of the run stores them. Two things are taken from the step:
the time the loop takes for that, and the processor time of that thread, which on a machine whose cores are busy
somebody else does not get. Waiting for the disk takes nothing from anybody.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from cedkv import ledger
from cedkv.bench.base import base_config
from cedkv.bench.options import Options, Scale
from cedkv.bench.rows import Agreement, Row, Section
from cedkv.bench.timing import Spread
from cedkv.tracking.reader import metric_history
from cedkv.tracking.writer import RunWriter
from cedkv.train.experiment import prepare
from cedkv.train.loop import Trainer

NAME = "tracking"
EXPERIMENT = "bench"
STRESS = 64
"""Prompts of the stress set: an eval tick at each end, which is in none of the numbers."""


class TimedLog:
    """Passes everything on to a run, and notes how long the loop waited with the metrics of each training step."""

    def __init__(self, run: RunWriter) -> None:
        self._run = run
        self.queued: list[float] = []
        self.logged: list[Mapping[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log, against the clock."""
        started = time.perf_counter()
        self._run.log_metrics(metrics, step)
        if ledger.LOSS in metrics:  # a training step, no eval tick
            self.queued.append(time.perf_counter() - started)
            self.logged.append(dict(metrics))


def tracking_section(options: Options) -> Section:
    """Train for some steps and log them; every logged number is read back."""
    steps, documents = options.scale.logged_steps, options.scale.documents
    config = base_config(
        [
            f"phase3.train.steps={steps}",
            f"phase3.train.lambda_off.dual.update_every={steps}",
            f"phase3.eval.on_samples={documents}",
            f"phase3.eval.off_fixed_stress.size={STRESS}",
            # What a run prepares is no part of its steps: few OFF prompts to measure gates on and to mine.
            "phase3.eval.off_samples=256",
            "phase3.loss.off.hard_pool_size=64",
            "phase3.loss.off.prerank=null",
        ]
    )
    experiment = prepare(config, 3)
    done: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        with RunWriter(uri, EXPERIMENT, params=config.model_dump(mode="json", exclude={"base_dir"})) as run:
            log = TimedLog(run)
            trainer = Trainer(experiment, log, warn=lambda _: None)
            started = _writer_seconds()
            trainer.run(lambda _: done.append(trainer.clock.seconds["train"]))
            run.flush()
            writing = (_writer_seconds() - started) / steps
        lost = _lost(run.run_id, uri, log)
    training = [after - before for before, after in zip([0.0, *done], done, strict=False)]
    return _section(training, log, writing, lost, documents)


def _writer_seconds() -> float:
    """Processor time so far of the threads that write runs."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name == "cedkv-log" and thread.ident is not None
    ]
    return sum(time.clock_gettime(clock) for clock in clocks)


def _lost(run_id: str, uri: str, log: TimedLog) -> int:
    """How many logged numbers the store does not give back as they were."""
    stored = metric_history(run_id, log.logged[0], uri)
    lost = 0
    for name in log.logged[0]:
        wanted = {(step, float(metrics[name])) for step, metrics in enumerate(log.logged)}
        lost += len(wanted - {(point.step, point.value) for point in stored[name]})
    return lost


def _section(training: list[float], log: TimedLog, writing: float, lost: int, documents: int) -> Section:
    step, queued = (Spread(tuple(values[1:])).times(1000) for values in (training, log.queued))
    written = Spread((1000 * writing,))
    checked = Agreement("read back from the store, numbers that are missing", lost, 0.0)
    logged = f"{len(log.logged[0])} metrics of a step"
    rows = (
        Row(NAME, "training step", f"configs/base.yaml, {documents} documents, embedded model", "ms", step),
        Row(NAME, "queueing", f"{logged}, until the loop goes on", "ms", queued, checked),
        Row(
            NAME,
            "writing",
            f"{logged}, processor time of the thread that stores them",
            "ms",
            written,
            checked,
        ),
    )
    share = (queued.median + written.median) / step.median
    taken = (
        f"Logging takes {share:.2%} of a step: {queued.median / step.median:.3%} that the loop waits, the rest in another "
        "thread. The first step is left out."
    )
    notes, full = [taken], Scale().documents
    if documents < full:
        notes.append(
            f"A step with the {full} documents of the configuration takes longer, its logging does not."
        )
    return Section(NAME, "Logging", rows, tuple(notes), {"tracking_share": share})
