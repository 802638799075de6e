"""The files of a run on this machine's disk. What only a server has is fetched in `api_read`."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Final, Protocol

from cedkv.tracking.names import check_artifact_path
from cedkv.tracking.sqlite import local_artifacts
from cedkv.tracking.store import database_path, is_sqlite

MAX_BYTES: Final = 64 * 1024 * 1024
"""A larger artifact is not parsed: the largest of a full-scale run is below 2 MB."""


class Files(Protocol):
    """The artifacts of a run, read and written one by one."""

    def text(self, path: str) -> str | None:
        """The content of ``path``; ``None`` when the run has no such artifact.

        Raises ``ValueError`` when it is there and cannot be read, is not UTF-8, or is larger than `MAX_BYTES`.
        """

    def copy(self, path: str, folder: Path) -> Path | None:
        """Put ``path`` into ``folder`` and return where it is; ``None`` when the run has no such artifact."""

    def write(self, path: str, text: str) -> None:
        """Write ``text`` as the artifact ``path``, replacing what is there."""


class LocalFiles:
    """The artifacts in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def text(self, path: str) -> str | None:
        """As `Files.text`."""
        file = self._folder / path
        try:
            if not file.exists():
                return None
            check_size(file.stat().st_size)
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error}") from error
        return content.decode()

    def copy(self, path: str, folder: Path) -> Path | None:
        """As `Files.copy`."""
        source = self._folder / path
        return Path(shutil.copy(source, folder)) if source.is_file() else None

    def write(self, path: str, text: str) -> None:
        """As `Files.write`, in one piece: a reader finds the old content or the new one.

        Not through MLflow: it remembers per run where artifacts went first, also for a store that was copied since.
        """
        target = self._folder / check_artifact_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            draft.write_bytes(text.encode())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


def local_files(uri: str, artifact_uri: str) -> LocalFiles | None:
    """The artifacts of a run of the store ``uri``; ``None`` when they are not on this machine's disk."""
    folder = local_artifacts(database_path(uri), artifact_uri) if is_sqlite(uri) else None
    return None if folder is None else LocalFiles(folder)


def check_size(size: int) -> None:
    """Raise ``ValueError`` for an artifact of ``size`` bytes that is too large to be one of this project's."""
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_BYTES} are read")
