"""The files of a run, on the disk beside the database or through a server."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from functools import cache
from pathlib import Path
from typing import Final

from cedkv.tracking.backend import MlflowClient, MlflowException, Run
from cedkv.tracking.names import check_artifact_path
from cedkv.tracking.sqlite import local_artifacts
from cedkv.tracking.store import database_path, is_sqlite

MAX_BYTES: Final = 64 * 1024 * 1024
"""A larger artifact is not parsed: the largest of a full-scale run is below 2 MB."""


class Artifacts:
    """The artifacts of ``run``, read and written one by one."""

    def __init__(self, client: MlflowClient, run: Run, uri: str) -> None:
        self._client, self._run_id = client, run.info.run_id
        self._folder = local_artifacts(database_path(uri), run.info.artifact_uri) if is_sqlite(uri) else None
        self._sizes = cache(self._list)

    def text(self, path: str) -> str | None:
        """The content of ``path``; ``None`` when the run has no such artifact.

        Raises ``ValueError`` when it is there and cannot be read, is not UTF-8, or is larger than `MAX_BYTES`.
        """
        try:
            content = self._download(path) if self._folder is None else _read(self._folder / path)
        except (OSError, MlflowException) as error:
            raise ValueError(f"cannot be read: {error}") from error
        return None if content is None else content.decode()

    def write(self, path: str, text: str) -> None:
        """Write ``text`` as the artifact ``path``, in one piece: a reader finds the old content or the new one.

        Not through MLflow on a local disk: it remembers per run where artifacts went first, also for a store that was
        copied since.
        """
        check_artifact_path(path)
        if self._folder is None:
            self._client.log_text(self._run_id, text, path)
            return
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            draft.write_bytes(text.encode())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def copy(self, path: str, folder: Path) -> Path | None:
        """Put ``path`` into ``folder`` and return where it is; ``None`` when the run has no such artifact."""
        if self._folder is None:
            held = path in self._sizes(path.rpartition("/")[0])
            return Path(self._client.download_artifacts(self._run_id, path, str(folder))) if held else None
        source = self._folder / path
        return Path(shutil.copy(source, folder)) if source.is_file() else None

    def _download(self, path: str) -> bytes | None:
        sizes = self._sizes(path.rpartition("/")[0])
        if path not in sizes:
            return None
        _check_size(sizes[path])
        with tempfile.TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(self._run_id, path, folder)).read_bytes()

    def _list(self, folder: str) -> dict[str, int]:
        return {
            item.path: item.file_size or 0
            for item in self._client.list_artifacts(self._run_id, folder or None)
        }


def _read(file: Path) -> bytes | None:
    if not file.exists():
        return None
    _check_size(file.stat().st_size)
    return file.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_BYTES} are read")
