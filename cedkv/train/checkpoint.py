"""Checkpoints of a run in training: whole or not there, checked when read, the last good one used.

A checkpoint is a folder `step-00000040` with the tensors (safetensors), everything else (JSON) and a manifest that holds
the SHA-256 of both. It is written under another name, synced, and renamed: a process that is killed leaves the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cedkv.core.errors import UserError

FORMAT: Final = 1
KEPT: Final = 2
"""Checkpoints of a run that stay: the newest, and the one before in case the newest is damaged."""
_TENSORS, _STATE, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_NAME: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run when `step` steps were done.

    `facts`: what must be the same for a run to go on, by name. `state`: what JSON holds of the training, NaN included.
    """

    step: int
    facts: Mapping[str, Any]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class DamagedError(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints of one run; while the block is open, no other process may open them.

    Args:
        folder: of this run alone; made when it is missing.

    Raises:
        UserError: another process has the run open, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder.with_name(f".{folder.name}.lock"))

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"run {self.folder.name} is open in another process; wait for it to end, or end it"
            ) from None
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {str(self.folder)!r} ({error.strerror}): make the folder writable"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # only where nothing was kept
            self.folder.rmdir()
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one, then drop those that are older than the `KEPT` newest. `OSError` where there is no room."""
        final = self.folder / f"step-{checkpoint.step:08d}"
        draft = self.folder / f".{final.name}.new"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            state = {"step": checkpoint.step, "facts": checkpoint.facts, "state": checkpoint.state}
            contents = {
                _TENSORS: save(
                    {name: x.detach().cpu().contiguous() for name, x in checkpoint.tensors.items()}
                ),
                _STATE: json.dumps(state).encode(),
            }
            manifest = {
                "format": FORMAT,
                "sha256": {name: sha256(content).hexdigest() for name, content in contents.items()},
            }
            for name, content in (*contents.items(), (_MANIFEST, json.dumps(manifest).encode())):
                _write(draft / name, content)
            if final.exists():  # made of the same steps; a resumed run comes by again
                shutil.rmtree(final)
            draft.rename(final)
            _sync(self.folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for old in self._found()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, warn: Callable[[str], object]) -> Checkpoint | None:
        """The newest one that is whole; `warn` is told of those that are not. None where there is none."""
        for folder in self._found():
            try:
                return _read(folder)
            except DamagedError as damage:
                warn(f"checkpoint {str(folder)!r} is damaged ({damage}); the one before is tried")
        return None

    @property
    def any(self) -> bool:
        """Whether there is one, good or not."""
        return bool(self._found())

    def clear(self) -> None:
        """Remove them: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Newest first."""
        named = [folder for folder in self.folder.iterdir() if _NAME.fullmatch(folder.name)]
        return sorted(named, key=lambda folder: int(folder.name.removeprefix("step-")), reverse=True)


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise DamagedError(f"format {manifest['format']!r} instead of {FORMAT}")
        content = {name: (folder / name).read_bytes() for name in (_TENSORS, _STATE)}
        for name, found in content.items():
            if sha256(found).hexdigest() != manifest["sha256"][name]:
                raise DamagedError(f"{name} does not have the hash that was written")
        written = json.loads(content[_STATE])
        return Checkpoint(written["step"], written["facts"], written["state"], load(content[_TENSORS]))
    except OSError as error:
        raise DamagedError(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name, what a run began with and what it would go on with, where the two differ; None where one lacks it.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    {'b': (2, 3)}
    """
    return {
        name: (was.get(name), now.get(name))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    }
