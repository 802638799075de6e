"""What the READMEs tell people to type: every command is one that the program takes, and, in the slow tests, runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from itertools import pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from cedkv.cli.parser import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("configs/*/*.md"))
    if path.name not in ("LOG.md", "CHANGELOG.md") and path.parts[-2] not in ("build", "mlruns-old")
)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ASSIGNED = re.compile(r"[A-Z_]+=\S*")
NAMED = ("--config", "--space", "--then", "--config_file", "--pages")
"""Options whose value is a file that has to be there."""
PLACEHOLDERS = ("FILE", "DIR")


class Line(NamedTuple):
    """A command of a page, without what launches it."""

    page: str
    words: list[str]
    launch: list[str]

    @property
    def said(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[Line]:
    """The calls of cedkv and of make in a page's shell blocks."""
    found = []
    for block in blocks(page, "bash"):
        for text in block.replace("\\\n", " ").splitlines():
            words = list(takewhile(lambda word: word != ">", shlex.split(text, comments=True)))
            while words and _ASSIGNED.fullmatch(words[0]):
                words = words[1:]
            if words[:1] == ["srun"]:
                words = shlex.split(words[-1].replace("$head", "head").replace("\\$SLURM_NODEID", "0"))
            launch: list[str] = []
            if "-m" in words and words[0] in ("accelerate", "python"):
                at = words.index("-m")
                launch, words = words[:at], words[at + 1 :]
            if words[:1] in (["cedkv"], ["make"]):
                found.append(Line(str(page.relative_to(ROOT)), words, launch))
    return found


COMMANDS = [line for page in PAGES for line in commands(page)]


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) > 25
    assert {line.page for line in COMMANDS} >= {"README.md", "configs/README.md", "configs/tune/README.md"}


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.said)
def test_a_command_is_one_that_the_program_takes(line: Line):
    if line.words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(line.words[1:]) <= set(targets)
        return
    assert callable(parse(line.words[1:]).run)
    made = {other.words[2] for other in COMMANDS if other.page == line.page and other.words[1] == "init"}
    for option, value in pairwise([*line.launch, *line.words]):
        if option in NAMED and value not in PLACEHOLDERS and value.split("/")[0] not in made:
            assert (ROOT / value).exists(), value


# ------------------------------------------------------------------------------------- the same, run one after the other
EXPECTED = {"gate": {0, 10, 11}, "warnings": {0, 13}, "tune": {0, 10}, "certify": {0, 10, 11}}
"""Statuses that are answers; of other commands 0 alone."""
SERVERS = {"dashboard", "ui"}
SHRUNK = {"--trials": "1", "--tokens": "4"}


class Workshop:
    """A folder as the repository is, whose configurations are all as small as smoke.yaml, with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("configs", "dashboards", "docs"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "cedkv").symlink_to(ROOT / "cedkv")
        (folder / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
        for name in ("base", "mid", "mid_gated"):
            shutil.copyfile(ROOT / "configs" / "smoke.yaml", folder / "configs" / f"{name}.yaml")
        self.env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "ACCELERATE_USE_CPU": "true",
        }

    def newest(self) -> str:
        """The last run that trained a memory to its end."""
        found = self.called(["gate", "--all", "--format", "json", "--dry-run"], {0, 10, 11})
        runs = [run for run in json.loads(found) if run["phase"] == "3" and run["status"] != "inconclusive"]
        return str(runs[-1]["run_id"])

    def called(
        self,
        arguments: list[str],
        statuses: set[int],
        launch: list[str] | None = None,
        folder: Path | None = None,
    ) -> str:
        """What a command prints; it has to end in one of `statuses`."""
        command = [sys.executable, "-m", "cedkv", *arguments]
        if launch and launch[0] == "accelerate":
            command = [
                str(Path(sys.executable).with_name("accelerate")),
                *launch[1:],
                "-m",
                "cedkv",
                *arguments,
            ]
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode in statuses, (arguments, done.returncode, done.stderr[-2000:])
        assert "Traceback" not in done.stderr
        return done.stdout

    def served(self, arguments: list[str]) -> None:
        """Start a server, wait until it says where it is, and end it."""
        server = subprocess.Popen(
            [sys.executable, "-m", "cedkv", *arguments],
            cwd=self.folder,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert server.stdout is not None
        said: list[str] = []
        try:
            for line in server.stdout:
                said.append(line)
                if "http://127.0.0.1" in line:
                    break
        finally:
            server.terminate()
            server.communicate(timeout=60)
        assert "http://127.0.0.1" in said[-1], (arguments, said)

    def run(self, line: Line) -> None:
        """One command of a page, made small."""
        words = line.words[1:]
        if "RUN_ID" in words:
            run_id = self.newest()
            words = [run_id if word == "RUN_ID" else word for word in words]
        for option, value in SHRUNK.items():
            if option in words:
                words[words.index(option) + 1] = value
        name = "train" if words[0].startswith("-") else words[0]
        if name in SERVERS:
            self.served([*words, "--port", str(_free_port())])
        elif name == "bench":  # measures configs/base.yaml as it is
            self.called([*words, "--out", str(self.folder / "bench")], {0}, folder=ROOT)
        else:
            self.called(words, EXPECTED.get(name, {0}), line.launch)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_what_the_readme_says_can_be_done_from_top_to_bottom(tmp_path: Path):
    """Its commands in their order, then its Python, in one place, as somebody does who tries everything."""
    workshop = Workshop(tmp_path)
    for line in commands(ROOT / "README.md"):
        elsewhere = line.words[0] == "make" or {"cuda", "--kvpress"} & set(line.words)
        if not elsewhere:  # CI calls make; there may be no GPU, and no environment with kvpress
            workshop.run(line)
    for block in blocks(ROOT / "README.md", "python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            env=workshop.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, (block, done.stderr[-3000:])
