"""kvpress, in an environment of its own: it pins an older transformers, and patches attention when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import cedkv
from cedkv.bench import peers
from cedkv.bench.quality.adapters import kv_shape
from cedkv.bench.quality.judge import Tables, base_tops
from cedkv.bench.quality.result import Check, Result
from cedkv.bench.quality.setting import Setting
from cedkv.core.errors import UserError
from cedkv.evaluate import StressResult
from cedkv.models.layers import attention_modules
from cedkv.models.tiny import EMBEDDED
from cedkv.train.experiment import Experiment
from cedkv.train.tables import answered, stress_rows

PRESSES = {"kvpress_knorm": "KnormPress", "kvpress_expected": "ExpectedAttentionPress"}
CHILD = "cedkv.bench.quality.press_child"
NOBODY = "no interpreter with kvpress was given (--kvpress)"
TOLERANCE = 1e-3
"""By how much the base's probabilities may differ in the other environment's transformers, in all."""
MAKE = "python3 -m venv build/kvpress-env && build/kvpress-env/bin/pip install torch==2.13.0 && build/kvpress-env/bin/pip install kvpress==0.5.5"


def check_interpreter(python: str) -> None:
    """Raise `UserError` where `python` cannot import kvpress."""
    try:
        done = subprocess.run([python, "-c", "import kvpress"], capture_output=True, text=True, check=False)  # noqa: S603
        reason = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    except OSError as error:
        reason = str(error)
    if reason:
        raise UserError(
            f"--kvpress {python!r} cannot import kvpress ({reason}): make an environment with `{MAKE}` and give "
            "build/kvpress-env/bin/python, or leave kvpress out of --only"
        )


def pressed(setting: Setting, name: str) -> Result:
    """Caches compressed to at least cedkv's bytes, judged from what the other environment answered."""
    python = setting.options.kvpress
    assert python is not None
    experiment = setting.experiment
    keep = tokens_for(experiment, setting.budget)
    shortest = min(len(context.ids) for context in experiment.encoded.contexts)
    if keep >= shortest:
        return Result(name, setting.seed, absent=f"the budget holds {keep} tokens, a document {shortest}")
    setting.say(f"seed {setting.seed}: {name}, {keep} tokens ...")
    with tempfile.TemporaryDirectory() as folder:
        problem = _run(python, Path(folder), experiment, PRESSES[name], keep)
        if problem:
            return Result(name, setting.seed, absent=f"not applicable: {problem}")
        done = json.loads((Path(folder) / "done.json").read_text())
        tables = _tables(experiment, Path(folder) / "done.safetensors")
    versions = ", ".join(f"{package} {number}" for package, number in done["versions"].items())
    notes = [f"{keep} tokens in every {'global ' * bool(done['sliding'])}layer; {versions}"]
    if done["sliding"]:
        notes.append(
            f"the {done['sliding']} layers with a sliding window keep their cache, which counts: it is not kvpress's to compress"
        )
    return Result(
        name,
        setting.seed,
        tables.on,
        tables.stress,
        bytes=done["bytes"],
        seconds=done["seconds"],
        notes=tuple(notes),
        checks=(
            Check("the base's probabilities, by this environment's transformers", done["apart"], TOLERANCE),
        ),
        facts={"overhead": done["overhead"], "keep": keep},
    )


def tokens_for(experiment: Experiment, budget: int) -> int:
    """Tokens that take at least `budget` bytes in the layers that kvpress compresses: those without a window."""
    heads, size = kv_shape(experiment.model)
    layers = sum(layer.window is None for layer in attention_modules(experiment.model).values())
    return -(-budget // (layers * 2 * heads * size * experiment.model.dtype.itemsize))


def _run(python: str, folder: Path, experiment: Experiment, press: str, keep: int) -> str:
    """Let the other environment do it; why it could not, in its own words."""
    config, encoded = experiment.config, experiment.encoded
    source = EMBEDDED if config.model_source == "embedded" else config.model_source
    stress = [row.prompt for row in encoded.stress]
    base = torch.zeros(len(stress), experiment.base_eval[0].shape[1])
    for group in peers.groups(experiment.model, stress, config.phase3.eval.batch_rows):
        base[group.places] = group.base.cpu()
    task = {
        "model": str(source),
        "dtype": config.model.dtype,
        "press": press,
        "keep": keep,
        "skipped": encoded.skipped,
        "rows": config.phase3.eval.batch_rows,
        "threads": torch.get_num_threads(),
        "documents": [context.ids for context in encoded.contexts],
        "on": [{"document": r.document, "prompt": r.prompt, "answer": r.answer} for r in encoded.on_eval],
        "stress": stress,
    }
    (folder / "task.json").write_text(json.dumps(task))
    save_file({"base": base}, folder / "task.safetensors")
    # No more of this environment than the code that judges: its packages are not the other one's.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PYTHONPATH": str(Path(cedkv.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603 - the interpreter that the user named
        [python, "-m", CHILD, str(folder)], capture_output=True, text=True, check=False, env=env
    )
    return (
        ""
        if done.returncode == 0
        else " ".join((done.stderr.strip().splitlines() or ["it died"])[-1].split())[:300]
    )


def _tables(experiment: Experiment, file: Path) -> Tables:
    found = load_file(file)
    lengths = [len(row.answer) for row in experiment.encoded.on_eval]
    student = list(found["on"].split(lengths))
    result = StressResult(found["kl"], base_tops(experiment), found["top"])
    return Tables(answered(experiment, student), stress_rows(experiment, result))
