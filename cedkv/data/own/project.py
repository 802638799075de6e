"""A project as a folder: its configuration, its three files of rows, and how to go on. It appears whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cedkv.core.errors import UserError
from cedkv.data.jsonl import OffFile
from cedkv.data.records import OnPrompt

CONFIG: Final = "cedkv.yaml"
SPLITS: Final = ("train", "stress", "sealed")
SLOTS: Final = 8
OFF_PER_SLOT: Final = 64
"""OFF training prompts for every slot of all documents: what gates need, as in configs/base.yaml."""
_MOST_DOCUMENTS: Final = 64
_MOST_OFF: Final = 32_768


@dataclass(frozen=True, slots=True)
class Sizes:
    """OFF prompts of every split."""

    train: int
    stress: int
    sealed: int

    def of(self, split: str) -> int:
        """The size of one."""
        return int(getattr(self, split))


@dataclass(frozen=True, slots=True)
class Project:
    """What a project consists of, and what its configuration and its README say about it.

    ``model``: as the configuration writes it. ``documents``: rows of their file. ``continues``: prompts go on with the text
    that they are about. ``remarks``: sentences about where the rows are from.
    """

    model: str
    documents: Sequence[Mapping[str, Any]]
    on: Sequence[OnPrompt]
    off: OffFile
    separator: str
    continues: bool
    remarks: Sequence[str]
    slots: int = SLOTS
    steps: int = 60

    def config(self) -> str:
        """The configuration, with comments."""
        used = min(len(self.documents), _MOST_DOCUMENTS)
        sizes = {split: len(getattr(self.off, split)) for split in SPLITS}
        batch = min(32, sum(row.split == "train" for row in self.on))
        return _CONFIG.format(
            model=json.dumps(self.model, ensure_ascii=False),
            separator=json.dumps(self.separator),
            repeat_bos=str(not self.continues).lower(),
            slots=self.slots,
            steps=self.steps,
            used=used,
            pool=max(1, sizes["train"] // 16),
            batch=batch,
            **sizes,
        )

    def readme(self) -> str:
        """How to go on."""
        return _README.format(remarks="\n".join(f"- {remark}" for remark in self.remarks))

    def summary(self) -> str:
        """What it holds, in counts."""
        train = sum(row.split == "train" for row in self.on)
        off = ", ".join(f"{len(getattr(self.off, split))} {split}" for split in SPLITS)
        return (
            f"{len(self.documents)} documents, {len(self.on)} ON prompts ({train} train, {len(self.on) - train} eval), "
            f"OFF prompts {off}"
        )

    def write(self, folder: Path) -> None:
        """Write everything into ``folder``."""
        data = folder / "data"
        data.mkdir()
        off = [row.row() | {"split": split} for split in SPLITS for row in getattr(self.off, split)]
        _write_rows(data / "documents.jsonl", self.documents)
        _write_rows(data / "on.jsonl", (row.row() for row in self.on))
        _write_rows(data / "off.jsonl", off)
        (folder / CONFIG).write_text(self.config(), encoding="utf-8")
        (folder / "README.md").write_text(self.readme(), encoding="utf-8")


def sizes_for(documents: int) -> Sizes:
    """OFF prompts for the gates of that many documents, and for the exams."""
    train = min(_MOST_OFF, OFF_PER_SLOT * SLOTS * min(documents, _MOST_DOCUMENTS))
    return Sizes(train, stress=512, sealed=1024)


def check_free(folder: Path) -> None:
    """Raise `UserError` unless a project may appear at ``folder``: it is absent, or an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "holds files already" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder}: {what}; a project is laid out in a new or empty folder: name another")


def lay_out(folder: Path, fill: Callable[[Path], None]) -> None:
    """Have ``fill`` write into a folder beside ``folder``, which takes its place once all of it is there.

    Raises:
        UserError: ``folder`` is taken or cannot be written; whatever ``fill`` raises. Nothing is left behind then.
    """
    check_free(folder)
    target = folder.absolute()
    home = next(parent for parent in target.parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=f".{target.name}-") as partial:
            fresh = Path(partial) / target.name
            fresh.mkdir()
            fill(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.rename(target)  # takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


_CONFIG = """\
# Made by `cedkv init`. Paths start at this file's folder. What is not written here has its default:
# `cedkv config show` prints everything, and `cedkv data` reports on the rows before anything is trained.
model:
  name_or_path: {model}

data:
  source: jsonl
  documents: data/documents.jsonl
  on: data/on.jsonl
  off: data/off.jsonl
  document_separator: {separator}   # between a document and a prompt, where the teacher reads both
  repeat_bos: {repeat_bos}   # false: prompts go on with the text; true: each starts a text of its own

phase3:
  memory:
    slots: {slots}   # of every document: what a memory can hold
  mix:
    share: head
    slot_gate: affine   # keeps out what no document answers; needs about 64 OFF training prompts for every slot
  loss:
    lambda_off: 0.5
    off:
      hard_pool_size: {pool}
  train:
    steps: {steps}
    on_batch: {batch}
    off_batch: 32
    gate_lr: 0.01
    hard_pool_refresh: 20
  eval:
    on_samples: {used}   # documents, from the first row on: one memory each
    off_samples: {train}
    off_fixed_stress:
      size: {stress}   # full scale: 2048
    off_sealed:
      size: {sealed}   # full scale: 8192
"""

_README = """\
# A project of cedkv

```bash
cedkv data cedkv.yaml                  # what the rows are, and what should be mended, before anything is trained
cedkv --config cedkv.yaml --phase 2    # the baseline: anchors, nothing trained
cedkv --config cedkv.yaml --phase 3    # training
cedkv gate --latest                    # the verdict: 0 pass, 10 failed, 11 inconclusive
cedkv report --latest                  # what the run did
cedkv memory export --latest           # its memory as a folder, where the gates pass it; `cedkv.api.Memory.load` reads it
```

Start them in this folder.

| file | holds |
| --- | --- |
| `cedkv.yaml` | the configuration; `cedkv config show cedkv.yaml` prints every key |
| `data/documents.jsonl` | what memories are made from, one each |
| `data/on.jsonl` | prompts that a memory should answer as if the document were there: to train on, and to be judged by |
| `data/off.jsonl` | prompts that no memory may change: to train on, the stress set of Gate B, and the sealed set of `cedkv certify` |

{remarks}
- OFF prompts from templates are a start. What should stand there is what your model is asked when the documents are none of
  its business: a log of real traffic, and above all questions that come near the documents and are not answered by them.
- After every change of the rows, `cedkv data cedkv.yaml`. Numbers of rows in `cedkv.yaml` may not be larger than the files.
"""
