from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cedkv import ledger
from cedkv.tracking import lineage
from cedkv.tracking.names import check_key


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit of one file."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("ignored/\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return folder


def _git(folder: Path, *arguments: str) -> str:
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *arguments],  # noqa: S607 (whichever git is installed)
        cwd=folder,
        env=os.environ | quiet,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_the_commit_of_clean_code(repository: Path) -> None:
    assert lineage.git_state(repository / "code.py") == (_git(repository, "rev-parse", "HEAD"), "false")


@pytest.mark.parametrize("file", ["code.py", "new.py"])
def test_a_change_or_a_new_file_makes_it_dirty(repository: Path, file: str) -> None:
    (repository / file).write_text("x = 2\n")
    assert lineage.git_state(repository / "code.py")[1] == "true"


def test_code_that_the_repository_around_it_does_not_track_has_no_commit(repository: Path) -> None:
    installed = repository / "ignored" / "site-packages" / "code.py"
    installed.parent.mkdir(parents=True)
    shutil.copyfile(repository / "code.py", installed)
    assert lineage.git_state(installed) == ("unknown", "unknown")


def test_code_outside_of_any_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "code.py").write_text("")
    assert lineage.git_state(tmp_path / "code.py") == ("unknown", "unknown")


def test_without_git_the_commit_is_unknown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert lineage.git_state(repository / "code.py") == ("unknown", "unknown")


def test_the_environment_names_versions_and_threads_on_one_short_line() -> None:
    line = lineage.environment(threads=3)
    for part in ("python 3", "torch 2", "transformers 5", "mlflow 3", "cpus ", "threads 3"):
        assert part in line
    assert "\n" not in line
    assert len(line) < 250


def test_what_is_collected_are_tags_of_the_ledger() -> None:
    tags = lineage.collect(threads=1)
    assert set(tags) == {ledger.TAG_GIT_COMMIT, ledger.TAG_GIT_DIRTY, ledger.TAG_ENVIRONMENT}
    assert all(check_key(name) for name in tags)
    assert re.fullmatch("[0-9a-f]{40}|unknown", tags[ledger.TAG_GIT_COMMIT])


def test_the_content_hash_depends_on_content_and_order_alone() -> None:
    first = lineage.content_hash([{"a": 1, "b": "서울"}, {"a": 2, "b": ""}])
    assert first == lineage.content_hash([{"b": "서울", "a": 1}, {"b": "", "a": 2}])
    assert first != lineage.content_hash([{"a": 2, "b": ""}, {"a": 1, "b": "서울"}])
    assert re.fullmatch("[0-9a-f]{64}", first)
