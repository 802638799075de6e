"""Add text artifacts to a run that has ended."""

from __future__ import annotations

from collections.abc import Mapping

from cedkv.tracking.backend import store_errors
from cedkv.tracking.names import check_artifact_path
from cedkv.tracking.store import open_client, shown


def attach(run_id: str, uri: str, files: Mapping[str, str]) -> None:
    """Write each text of `files` (path in the run: content) to the run's artifacts, replacing what is there."""
    client = open_client(uri)
    with store_errors(f"attaching to run {run_id} in {shown(uri)}"):
        for path, text in files.items():
            client.log_text(run_id, text, check_artifact_path(path))
