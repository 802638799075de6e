"""Damaged input of every kind that cedkv reads: each is read as it was meant, or refused in words.

    python scripts/fuzz_campaign.py [--seed N] [--inputs N] > table.md

Good files are damaged at random: bytes flipped, cut, doubled, swapped for the worst ones, values replaced by others of any
type, files truncated. What comes back is either a good object or the error that the reader promises; anything else is a
traceback for somebody. Tensors and checkpoints that were changed in a single bit are never accepted.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cedkv.config import load
from cedkv.core.errors import UserError
from cedkv.data.jsonl import read_documents, read_off, read_on
from cedkv.memory.export import read_memory
from cedkv.tracking.journal import Journal
from cedkv.train.checkpoint import Checkpoint, Checkpoints

ROOT = Path(__file__).parents[1]
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -0.0, 1e308, -1e-320, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x" * 3000,
        "\x00",
        "\ud800",
        "\u202e",
        "ㄱ",
        "../../etc/passwd",
        "${HOME}",
        "{{x}}",
        "<script>",
        "1e3",
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}),
)
WORST = (
    b"\x00",
    b"\xff\xfe",
    b"\xf0\x9f",
    b"\x85",
    b"{",
    b"}",
    b"[" * 2000,
    b'"',
    b": ",
    b"\n",
    b"\t",
    b"&a *a",
    b"!!python",
    b"<<: ",
)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """`content` with a few of its bytes changed."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 if found:
                found[place % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                del found[place : place + rng.randint(1, 40)]
            case 2:
                found[place:place] = rng.choice(WORST)
            case 3:
                found[place:place] = found[place : place + rng.randint(1, 200)]
            case 4:
                del found[place:]
            case _:
                found[place : place + 1] = rng.randbytes(rng.randint(1, 8))
    return bytes(found)


def altered(rng: random.Random, value: Any) -> Any:
    """A JSON value with something in it replaced, dropped or added."""
    value = copy.deepcopy(value)
    inside = value
    while isinstance(inside, dict | list) and inside:
        key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.7:
            inside = inside[key]
            continue
        match rng.randrange(4):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[rng.choice(["", "id", "extra", "ON", "\x00"])] = rng.choice(NASTY)
            case _:
                inside[key] = rng.choice(NASTY)
        return value
    return rng.choice(NASTY)


class AcceptedError(AssertionError):
    """Something that was changed was taken for good."""


# --------------------------------------------------------------------------------------------------------------- targets
def configurations(rng: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """Files that ship, damaged; and settings on the command line."""
    files = [file.read_bytes() for file in (ROOT / "configs").glob("*.yaml")]
    keys = [
        "phase3.train.steps",
        "phase3.loss.off.cvar_tail_fraction",
        "data",
        "phase3",
        "model.dtype",
        "x.y",
        "",
    ]
    while True:
        file = folder / "config.yaml"
        file.write_bytes(damaged(rng, rng.choice(files)))
        settings = []
        if rng.random() < 0.4:
            file.write_bytes(rng.choice(files))
            settings = [
                f"{rng.choice(keys)}={json.dumps(rng.choice(NASTY))}" for _ in range(rng.randint(1, 3))
            ]
        yield lambda file=file, settings=settings: load(file, settings, phase=rng.choice((2, 3)), env={})


def rows(rng: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """Documents, ON prompts and OFF prompts."""
    documents = [{"id": f"d{n}", "text": f"Bo{n} is red. Ana{n} likes 색."} for n in range(3)]
    on = [
        {
            "id": f"o{n}",
            "document": f"d{n % 3}",
            "prompt": f"Bo{n % 3} is",
            "answer": " red",
            "split": ("train", "eval")[n % 2],
        }
        for n in range(6)
    ]
    off = [{"id": f"f{n}", "prompt": f"Two and {n} is", "family": "sums"} for n in range(6)]
    readers: list[tuple[list[dict[str, str]], Callable[[Path], object]]] = [
        (documents, read_documents),
        (on, lambda file: read_on(file, {"d0", "d1", "d2"}, seed=0)),
        (off, read_off),
    ]
    while True:
        good, read = rng.choice(readers)
        changed = [altered(rng, row) if rng.random() < 0.3 else row for row in good]
        text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in changed)
        content = text.encode("utf-8", "surrogatepass")
        file = folder / "rows.jsonl"
        file.write_bytes(damaged(rng, content) if rng.random() < 0.6 else content)
        yield lambda read=read, file=file: read(file)


def memories(rng: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """A memory's two files."""
    tensors = {f"{name}.{i}": torch.randn(2, 2, 3, 4) for name in ("keys", "values") for i in (2, 3)}
    tensors |= {f"bias.{i}": torch.randn(2, 4, 3) for i in (2, 3)}
    meta = {
        "format": 3,
        "tensors_sha256": "",
        "layers": {"injection": [2, 3], "mixture": [3]},
        "slot_gate": "affine",
        "documents": ["a", "b"],
        "slots": 3,
        "model_fingerprint": "f" * 64,
        "config_hash": "c" * 64,
    }
    file, described = folder / "memory.safetensors", folder / "memory.json"
    save_file(tensors, file)
    good = file.read_bytes()
    meta["tensors_sha256"] = sha256(good).hexdigest()

    def read() -> object:
        found = read_memory(file, described)
        if file.read_bytes() != good:
            raise AcceptedError("tensors that were changed were taken for a memory")
        return found

    while True:
        file.write_bytes(damaged(rng, good) if rng.random() < 0.5 else good)
        text = json.dumps(altered(rng, meta) if rng.random() < 0.7 else meta).encode("utf-8", "surrogatepass")
        described.write_bytes(damaged(rng, text) if rng.random() < 0.3 else text)
        yield read


def checkpoints(rng: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """A file of the newest checkpoint is damaged: the one before is used, or none."""
    state = {
        "training": {
            "dual": {"lambda_off": 0.5},
            "traces": {"loss": [{"step": n, "x": n / 7} for n in range(50)]},
        }
    }
    place = folder / "checkpoints"
    with Checkpoints(place) as saved:
        saved.save(Checkpoint(5, {"a": 1}, state, {"x": torch.randn(40)}))
    (good,) = place.glob("step-*")
    contents = {file.name: file.read_bytes() for file in good.iterdir()}

    def read(changed: bool) -> object:
        with Checkpoints(place) as saved:
            found = saved.newest(lambda _: None)
        if changed and found is not None:
            raise AcceptedError("a damaged checkpoint was accepted")
        return found

    while True:
        name = rng.choice(list(contents))
        content = damaged(rng, contents[name])
        for other, whole in contents.items():
            (good / other).write_bytes(content if other == name else whole)
        # White space in the manifest, which has no hash of its own, changes nothing.
        harmless = name == "manifest.json" and same_json(content, contents[name])
        yield lambda changed=content != contents[name] and not harmless: read(changed)


def same_json(one: bytes, other: bytes) -> bool:
    """Whether two texts say the same."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False


def journals(rng: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """What a process that died left behind."""
    place = folder / "journal"
    with Journal(place, {"run_id": "0" * 32}) as journal:
        for n in range(20):
            journal.append({"kind": "metrics", "points": [["x", n / 3, 1, n]]})
    contents = {
        file.name: file.read_bytes() for file in place.iterdir() if file.is_file() and file.name != "lock"
    }

    def read() -> object:
        with Journal(place) as journal:
            journal.header  # noqa: B018
            while found := journal.take(7):
                journal.confirm(len(found))
            return journal.empty

    while True:
        name = rng.choice(list(contents))
        for other, whole in contents.items():
            (place / other).write_bytes(damaged(rng, whole) if other == name else whole)
        yield read


TARGETS = {
    "configuration (YAML, --set)": (configurations, 0.3),
    "documents and prompts (JSONL)": (rows, 0.3),
    "memory files": (memories, 0.2),
    "checkpoints": (checkpoints, 0.1),
    "journals": (journals, 0.1),
}


def main(seed: int, inputs: int) -> int:
    """The table; 1 where anything but an answer or a promised error came back."""
    bad: list[str] = []
    print("| input | tried | read | refused | tracebacks |\n| --- | --- | --- | --- | --- |")
    for name, (target, share) in TARGETS.items():
        rng, count = random.Random(seed), Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            tries = target(rng, Path(folder))
            for _ in range(int(inputs * share)):
                attempt = next(tries)
                try:
                    found = attempt()
                except UserError as error:
                    count["refused"] += 1
                    if not str(error).strip():
                        bad.append(f"{name}: an error without a word")
                except BaseException as error:  # noqa: BLE001 - that is what is counted
                    count["traceback"] += 1
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    bad.append(
                        f"{name}: {type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:120]}"
                    )
                else:
                    count["refused" if found is None else "read"] += 1
        print(
            f"| {name} | {sum(count.values()):,} | {count['read']:,} | {count['refused']:,} | {count['traceback']} |"
        )
    for line, times in Counter(bad).most_common(20):
        print(f"\n- {times} x {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=6000)
    arguments = parser.parse_args()
    sys.exit(main(arguments.seed, arguments.inputs))
