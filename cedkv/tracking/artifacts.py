"""The files of a run on this machine's disk. What only a server has is fetched in `api_read`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from cedkv.tracking.sqlite import local_artifacts
from cedkv.tracking.store import database_path, is_sqlite

MAX_BYTES: Final = 64 * 1024 * 1024
"""A larger artifact is not parsed: the largest of a full-scale run is below 2 MB."""


class Files(Protocol):
    """The artifacts of a run, read as text one by one."""

    def text(self, path: str) -> str | None:
        """The content of ``path``; ``None`` when the run has no such artifact.

        Raises ``ValueError`` when it is there and cannot be read, is not UTF-8, or is larger than `MAX_BYTES`.
        """


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


def local_files(uri: str, artifact_uri: str) -> LocalFiles | None:
    """The artifacts of a run of the store ``uri``; ``None`` when they are not on this machine's disk."""
    folder = local_artifacts(database_path(uri), artifact_uri) if is_sqlite(uri) else None
    return None if folder is None else LocalFiles(folder)


def check_size(size: int) -> None:
    """Raise ``ValueError`` for an artifact of ``size`` bytes that is too large to be one of this project's."""
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_BYTES} are read")
