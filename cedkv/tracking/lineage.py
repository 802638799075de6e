"""Where a run comes from: the code, the environment and the data, as tags of the run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cedkv import ledger
from cedkv.core.hashing import content_hash

__all__ = ["UNKNOWN", "collect", "content_hash", "environment", "git_state"]

UNKNOWN: Final = "unknown"

_PACKAGES: Final = ("cedkv", "torch", "transformers", "mlflow")
_GIT_SECONDS: Final = 10.0


def collect(*, threads: int | None = None, source: Path | None = None) -> dict[str, str]:
    """The tags that tell where a run comes from: git commit, dirtiness and environment.

    Args:
        threads: compute threads in use. ``None`` asks torch if it is loaded; CPU results depend on the number.
        source: a file of the code in use. ``None`` is this package.
    """
    commit, dirty = git_state(source or Path(__file__))
    return {
        ledger.TAG_GIT_COMMIT: commit,
        ledger.TAG_GIT_DIRTY: dirty,
        ledger.TAG_ENVIRONMENT: environment(threads),
    }


def git_state(source: Path) -> tuple[str, str]:
    """Commit (40 hex digits) and dirtiness (``"true"``, ``"false"``) of the work tree that tracks ``source``.

    Dirty: a tracked file differs from the commit, or a file is neither tracked nor ignored. Both are ``"unknown"``
    without git, and for a copy of the code that git does not track (an installed package, even inside a repository).
    """
    tracked = _git(source, "ls-files", "--error-unmatch", "--", source.name)
    commit = _git(source, "rev-parse", "HEAD") if tracked else None
    if not commit:
        return UNKNOWN, UNKNOWN
    changes = _git(source, "status", "--porcelain")
    return commit, UNKNOWN if changes is None else str(bool(changes)).lower()


def environment(threads: int | None = None) -> str:
    """Versions, machine and threads on one line, e.g. ``python 3.11.7; torch 2.13.0+cpu; ...; cpus 2; threads 1``."""
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {_version(name)}" for name in _PACKAGES]
    parts += [f"{platform.system()} {platform.machine()}", f"cpus {os.cpu_count() or UNKNOWN}"]
    return "; ".join([*parts, f"threads {threads or _threads()}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def _threads() -> str:
    torch = sys.modules.get("torch")  # not imported for this alone
    return str(torch.get_num_threads()) if torch else os.environ.get("OMP_NUM_THREADS", UNKNOWN)


def _git(source: Path, *arguments: str) -> str | None:
    """What git prints, stripped; ``None`` when git is missing, fails or hangs."""
    command = ["git", "-C", str(source.parent), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments, no shell)
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
