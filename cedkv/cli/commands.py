"""One function per command: resolve the arguments, import the room that does the work, print its result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.config import Config


ABORTED = 1
"""Status of a training that its constraint or numbers that are not finite ended, as of any run that ends FAILED."""


def train(arguments: argparse.Namespace) -> int:
    """Train, or log the baseline. Every mistake in the configuration shows before torch is imported."""
    _check_flags(arguments)
    config = None if arguments.config is None else _resolved(arguments)
    if arguments.explore and config is not None:
        _check_explore(config, arguments.phase)
    from cedkv.core.team import LostProcessError
    from cedkv.tracking.backend import TrackingError
    from cedkv.train.finite import NonFiniteError
    from cedkv.train.launch import leave
    from cedkv.train.loop import ConstraintViolatedError
    from cedkv.train.main import run_training

    try:
        if arguments.resume is not None or config is None:
            run_id = _resumed(arguments, config)
        else:
            run_id = run_training(config, phase=arguments.phase, explore=arguments.explore, progress=True)
    except (ConstraintViolatedError, NonFiniteError) as aborted:
        # What the configuration asked for, not a crash; the run is in the log as FAILED.
        if talks():
            print(f"cedkv: the run was aborted: {aborted}", file=sys.stderr)
        return ABORTED
    except (LostProcessError, TrackingError) as failed:
        print(f"cedkv: error: {failed}", file=sys.stderr)
        return ABORTED
    leave()
    if run_id:
        print(f"run {run_id}")
        print(f"judge it: cedkv gate {run_id}")
    return 0


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if arguments.resume is None:
        if arguments.config is None:
            raise UserError(
                "no configuration: give --config FILE, e.g. configs/smoke.yaml, or --resume RUN_ID"
            )
        if arguments.allow_changed:
            raise UserError("--allow-changed belongs to --resume: a new run may be whatever it likes")
        return
    alone = arguments.config is None
    for given, flag, why in (
        (arguments.phase != 3, "--phase 2", "the baseline trains nothing that could be resumed"),
        (arguments.explore, "--explore", "a run is exploratory from its start or never"),
        (
            alone and arguments.overrides,
            "--set",
            "it changes the file that --config names, so give that, too",
        ),
        (alone and arguments.phase3_strict_hf, "--phase3-strict-hf", "give --config with it, too"),
    ):
        if given:
            raise UserError(f"--resume with {flag}: {why}; or drop {flag}")


def _resumed(arguments: argparse.Namespace, config: Config | None) -> str:
    """Go on with a run, in the configuration of its checkpoint where none is given."""
    from cedkv.cli.judge import store, whole_id
    from cedkv.config import from_logged
    from cedkv.train.follow import by_first
    from cedkv.train.launch import join
    from cedkv.train.main import run_training
    from cedkv.train.resume import Resumption, resumption

    team = join(os.environ)
    found: list[Resumption] = []

    def warn(message: str) -> None:
        print(f"cedkv: warning: {message}", file=sys.stderr)

    with ExitStack() as held:

        def find() -> None:
            arguments.tracking_uri = None if config is None else config.tracking.uri
            uri = store(arguments)
            run_id = whole_id(arguments, arguments.resume)
            run = resumption(run_id, uri, config, arguments.allow_changed, warn, processes=team.size)
            found.append(held.enter_context(run))

        by_first(team, find)
        told = team.tell(found[0].config.model_dump_json().encode() if found else b"")
        going_on = from_logged(json.loads(told), "the checkpoint")
        return run_training(going_on, phase=3, progress=True, resumed=found[0] if found else None)


def sync(arguments: argparse.Namespace) -> int:
    """Send what waits on this machine, and judge what has finished with that; a line for each run.

    1 where something still waits and no process is at it.
    """
    from cedkv.cli.judge import store
    from cedkv.tracking.spool import sync as synced

    uri = store(arguments)
    waits = count = 0
    for found in synced(uri):
        count += 1
        waits += found.state in {"refused", "elsewhere"}
        line = f"{found.run_id}  {_SYNCED[found.state].format(found=found)}"
        if found.damaged:
            line += f"; {found.damaged} lines were damaged and are lost"
        if found.state == "sent" and found.status == "FINISHED":
            from cedkv.train.publish import publish

            line += f", verdict {publish(found.run_id, uri).gates.status.value}"  # its own process could not
        print(line)
    if not count:
        print("nothing waits on this machine")
    return 1 if waits else 0


_SYNCED = {
    "sent": "{found.records} records sent; the run is {found.status}",
    "open": "left to the process that has it open",
    "elsewhere": "belongs to another store: name that one with --tracking-uri",
    "refused": "is refused by this store ({found.why}); remove {found.folder} if nobody wants it",
}


def config_validate(arguments: argparse.Namespace) -> int:
    """Say that a configuration is valid, with its hash; a broken one is an error."""
    from cedkv.config import config_hash

    print(f"{arguments.config}: valid, hash {config_hash(_resolved(arguments))}")
    return 0


def config_show(arguments: argparse.Namespace) -> int:
    """Print the resolved configuration as YAML, its hash in a comment."""
    from cedkv.config import config_hash, dump_yaml

    config = _resolved(arguments)
    print(f"# hash {config_hash(config)}\n{dump_yaml(config)}", end="")
    return 0


def config_schema(_: argparse.Namespace) -> int:
    """Print the JSON Schema."""
    from cedkv.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def model_info(_: argparse.Namespace) -> int:
    """Describe the embedded model."""
    from cedkv.config import EMBEDDED
    from cedkv.models.load import load_model

    loaded = load_model(EMBEDDED, device="cpu")
    config = loaded.model.config.get_text_config()
    facts = {
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "parameters": f"{loaded.model.num_parameters():,}",
        "vocabulary": len(loaded.tokenizer),
        "context": f"{loaded.context_length} tokens",
        "fingerprint": loaded.fingerprint,
    }
    for name, value in facts.items():
        print(f"{name:12} {value}")
    return 0


def model_build(arguments: argparse.Namespace) -> int:
    """Train the embedded model; a bar on a terminal, else lines of progress, and the held-out scores at the end."""
    folder = Path(arguments.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {arguments.out!r} is no folder to write to ({error.strerror}); name another"
        ) from error
    from tqdm import tqdm

    from cedkv.train.embedded import Recipe, build

    recipe = Recipe() if arguments.steps is None else Recipe(steps=arguments.steps)
    with tqdm(total=recipe.steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        scores = build(folder, recipe, lambda line: bar.write(line, file=sys.stderr), on_step=bar.update)
    cases = list(scores)
    kinds = sorted({kind for found in scores.values() for kind in found})
    print(f"{'accuracy on':12}" + "".join(f"  {case:>29}" for case in cases))
    for kind in kinds:
        print(f"{kind:12}" + "".join(f"  {scores[case].get(kind, float('nan')):29.3f}" for case in cases))
    print(f"written to {folder}")
    return 0


def _resolved(arguments: argparse.Namespace) -> Config:
    """The configuration the arguments ask for; what its author should know goes to the error stream."""
    from cedkv.config import load

    loaded = load(
        arguments.config,
        arguments.overrides,
        phase=arguments.phase,
        strict_hf=arguments.phase3_strict_hf,
        env=os.environ,
    )
    for note in loaded.notes if talks() else ():
        print(f"cedkv: note: {note}", file=sys.stderr)
    return loaded.config


def _check_explore(config: Config, phase: int) -> None:
    if phase != 3:
        raise UserError(
            f"--explore with --phase {phase}: only Phase 3 runs are explored; drop one of the two"
        )
    if not config.phase3.milestone.explore.enabled:
        raise UserError(
            "--explore with phase3.milestone.explore.enabled: false: the milestone would never be judged; enable it"
        )


def talks() -> bool:
    """Whether this process talks to the user: of a launch, the first on each machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
