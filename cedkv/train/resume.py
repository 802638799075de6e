"""Saving a run while it trains, and going on with it where it was saved."""

from __future__ import annotations

import difflib
import json
import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from cedkv import ledger
from cedkv.config import Config, from_logged
from cedkv.config.schema import NOT_HASHED
from cedkv.core.errors import UserError
from cedkv.tracking import lineage
from cedkv.tracking.names import check_run_id, flatten
from cedkv.tracking.reader import read_run
from cedkv.tracking.reopen import Resumed, check_open_to_resume
from cedkv.tracking.signals import Terminated
from cedkv.tracking.sqlite import try_writing
from cedkv.tracking.store import local_home
from cedkv.tracking.tables import parse_mapping
from cedkv.train.checkpoint import Checkpoint, Checkpoints, differences
from cedkv.train.follow import Follower
from cedkv.train.state import restore, state_of, tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cedkv.tracking.writer import RunWriter
    from cedkv.train.loop import Trainer


def _home(uri: str) -> Path:
    return local_home(uri) / "checkpoints"


def checkpoints_of(run_id: str, uri: str) -> Checkpoints:
    """The checkpoints of a run."""
    return Checkpoints(_home(uri) / check_run_id(run_id))


def check_room(uri: str) -> None:
    """Raise `UserError` where no checkpoint could be written, before anything is computed. Creates nothing."""
    try:
        try_writing(_home(uri))
    except OSError as error:
        raise UserError(
            f"checkpoints cannot be written to {str(_home(uri))!r} ({error.strerror}): make it a folder that this user may "
            "write, or start from another project folder"
        ) from error


def facts_of(config: Config, processes: int, tags: Mapping[str, str] | None = None) -> dict[str, str]:
    """What decides a run's numbers: settings, code, environment; of `tags` those of the model and the data.

    The number of `processes` decides none; but who goes on with another one should know.
    """
    settings = flatten(config.model_dump(mode="json", exclude=NOT_HASHED))
    return {
        **dict(settings),
        ledger.TAG_WORLD_SIZE: str(processes),
        **lineage.collect(threads=torch.get_num_threads()),
        **{name: value for name, value in (tags or {}).items() if _late(name)},
    }


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that goes on from a checkpoint, with `config`; `changed`: what differs by name, and was allowed to."""

    run_id: str
    checkpoints: Checkpoints
    checkpoint: Checkpoint
    config: Config
    allowed: Collection[str]
    changed: dict[str, tuple[Any, Any]]
    tags_before: Mapping[str, str]

    @property
    def point(self) -> Resumed:
        """For the log."""
        before = self.tags_before.get(ledger.TAG_CHANGED, "")
        same = self.changed.keys() <= ledger.CHANGES_NO_NUMBER and not before
        return Resumed(self.run_id, self.checkpoint.step, same)

    def check(self, tags: Mapping[str, str]) -> None:
        """Refuse other data or another model than the run began with. `UserError` says what differs."""
        was = {name: value for name, value in self.checkpoint.facts.items() if _late(name)}
        now = {name: value for name, value in tags.items() if _late(name)}
        self.changed.update(_allowed(was, now, self.allowed, self.run_id))

    @property
    def tags(self) -> dict[str, str]:
        """What the log says of it, beside the tags that a run starts with."""
        before = self.tags_before
        steps = [*filter(None, [before.get(ledger.TAG_RESUMED)]), str(self.checkpoint.step)]
        found = {ledger.TAG_RESUMED: ", ".join(steps)}
        if self.changed:
            already: dict[str, Any] = {}
            with suppress(ValueError):  # a tag that was clipped, or edited
                already = parse_mapping(before.get(ledger.TAG_CHANGED, "{}"))
            found[ledger.TAG_CHANGED] = json.dumps({**already, **self.changed})
        return found


@contextmanager
def resumption(
    run_id: str,
    uri: str,
    config: Config | None,
    allowed: Collection[str],
    warn: Callable[[str], object],
    *,
    processes: int = 1,
) -> Iterator[Resumption]:
    """What it takes to go on with `run_id`, while no other process can.

    Args:
        config: the configuration as it is now; None: as it was.
        allowed: names of settings and tags that may differ, or of groups of settings.
        processes: how many there are now.

    Raises:
        UserError: the run is finished, has no good checkpoint, is open elsewhere, or would go on as another one.
    """
    record = read_run(run_id, uri)
    check_open_to_resume(run_id, record.status, record.lifecycle)
    with checkpoints_of(run_id, uri) as checkpoints:
        checkpoint = checkpoints.newest(warn)
        if checkpoint is None:
            raise UserError(
                f"run {run_id} has no good checkpoint in {str(checkpoints.folder)!r}: it ended before its first one "
                "(checkpoint.every), or ran on another machine; start a new run"
            )
        if config is None:
            config = from_logged(checkpoint.state["config"], f"the checkpoint of run {run_id}")
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})
        _check_names(allowed, checkpoint.facts)
        was = {name: value for name, value in checkpoint.facts.items() if not _late(name)}
        changed = _allowed(was, facts_of(config, processes), allowed, run_id)
        yield Resumption(run_id, checkpoints, checkpoint, config, allowed, changed, record.tags)


@contextmanager
def opened(run_id: str, uri: str, resumed: Resumption | None) -> Iterator[Checkpoints]:
    """The checkpoints of a run that is open for writing; those of a resumed run are open already."""
    if resumed is not None:
        yield resumed.checkpoints
        return
    with checkpoints_of(run_id, uri) as checkpoints:
        yield checkpoints


def _check_names(allowed: Collection[str], facts: Collection[str]) -> None:
    """Refuse what names no setting, group of settings or tag of a run: a misspelt one would allow nothing."""
    for key in allowed:
        if not any(_names(key, fact) for fact in facts):
            near = difflib.get_close_matches(key, facts, n=1)
            meant = f"did you mean {near[0]}?" if near else "a key of the configuration or a tag is one"
            raise UserError(f"--allow-changed {key}: names nothing that a run is held to; {meant}")


def _names(key: str, fact: str) -> bool:
    return fact == key or fact.startswith(f"{key}.")


def _late(name: str) -> bool:
    """Whether a fact is known only once the model and the data are loaded."""
    return name == ledger.TAG_MODEL or name.startswith(ledger.HASH_TAG_PREFIX)


def _allowed(
    was: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str], run_id: str
) -> dict[str, tuple[Any, Any]]:
    """What differs, where all of it may; `UserError` that shows what may not."""
    found = differences(was, now)
    refused = [name for name in found if not any(_names(key, name) for key in allowed)]
    if refused:
        shown = "\n".join(f"  {name}: was {found[name][0]}, is {found[name][1]}" for name in refused)
        raise UserError(
            f"run {run_id} would go on as another run than it began:\n{shown}\nrestore what it was, or allow it by name: "
            + " ".join(f"--allow-changed {name}" for name in refused)
        )
    return found


@dataclass(frozen=True, slots=True)
class Saver:
    """Writes checkpoints of an open run, and lets signals through only where one was written.

    In a team, all processes go on from what the first one read, and stop at the same step; the first one writes.
    """

    run: RunWriter | Follower
    checkpoints: Checkpoints | None
    trainer: Trainer
    facts: Mapping[str, Any]
    resumed: Resumption | None

    def begin(self) -> None:
        """Put the trainer where the run was saved; from now on hold signals back."""
        team, trainer = self.trainer.team, self.trainer
        checkpoint = None if self.resumed is None else self.resumed.checkpoint
        state, tensors = team.tell(_said(checkpoint)), team.tell(_packed(checkpoint))
        if state:
            told = json.loads(state)
            restore(trainer, safetensors.torch.load(tensors), told["training"])
            trainer.done = told["step"]
        self.run.hold_signals()

    def after_step(self) -> None:
        """Save where it is time to."""
        trainer, every = self.trainer, self.trainer.experiment.config.checkpoint.every
        done, interrupted = trainer.done, trainer.team.any(self.run.interrupted)
        ends = done == trainer.phase3.train.steps or trainer.finite.lost
        if interrupted or ends or (every and done % every == 0):
            with trainer.clock.part("log"):
                self._save()
        if interrupted:
            if self.checkpoints is not None and self.checkpoints.any:
                trainer.warn(f"interrupted after step {done}; go on with: cedkv --resume {self.run.run_id}")
            self.run.release_signals()
            raise Terminated(signal.SIGTERM)  # the signal came to another process

    def end(self) -> None:
        """Training is over, and saved."""
        self.run.release_signals()

    def _save(self) -> None:
        if self.checkpoints is None or isinstance(self.run, Follower):
            return
        config = self.trainer.experiment.config.model_dump(mode="json")
        state = {"config": config, "training": state_of(self.trainer)}
        try:
            # A checkpoint says that the log is complete up to it: a resumed run logs nothing from before.
            self.run.secure()
            self.checkpoints.save(Checkpoint(self.trainer.done, self.facts, state, tensors_of(self.trainer)))
        except OSError as error:
            self.trainer.warn(
                f"step {self.trainer.done}: no checkpoint could be written to {str(self.checkpoints.folder)!r} "
                f"({error.strerror}); the one before stays"
            )


def _said(checkpoint: Checkpoint | None) -> bytes:
    """Its step and the state of the training, as JSON."""
    if checkpoint is None:
        return b""
    return json.dumps({"step": checkpoint.step, "training": checkpoint.state["training"]}).encode()


def _packed(checkpoint: Checkpoint | None) -> bytes:
    """Its tensors, as safetensors."""
    return b"" if checkpoint is None else safetensors.torch.save(dict(checkpoint.tensors))
