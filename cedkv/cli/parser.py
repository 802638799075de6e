"""Commands and their arguments. Nothing but argparse is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import cedkv
from cedkv.bench.options import DEFAULT_SHAPE, EMBEDDED, SECTIONS, SHAPES
from cedkv.bench.quality.options import METHODS, SEEDS
from cedkv.cli import bench, commands, generate, judge, look, memory, own, repeat, shared, tune

_Run = Callable[[argparse.Namespace], int]
_TRAIN = "train"
_TOP_LEVEL_FLAGS = frozenset({"-h", "--help", "--version"})


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """``argv`` as arguments, ``run`` among them. Without a command, flags belong to ``train``."""
    arguments = list(argv)
    if arguments and arguments[0].startswith("-") and arguments[0] not in _TOP_LEVEL_FLAGS:
        arguments.insert(0, _TRAIN)
    return _build().parse_args(arguments)


def _build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cedkv",
        description="Train document memories for a frozen causal LM under a tail-risk constraint, and judge them.",
        epilog="Without a command, flags start training: cedkv --config configs/smoke.yaml --phase 3",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cedkv {cedkv.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, summary: str, run: _Run) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    _train(command(_TRAIN, "train a memory, or log the baseline (--phase 2)", commands.train))
    _gate(command("gate", "judge a run from its log; the exit status is the verdict", judge.gate))
    _report(command("report", "print the report of a run, made from its log", judge.report))
    _dashboard(
        command("dashboard", "serve the pages of dashboards/ over the runs, on this machine", look.dashboard)
    )
    _ui(command("ui", "start MLflow's own pages on the store", look.ui))
    _warnings(command("warnings", "list what the rules of the pages say about runs", look.warnings))
    _reproduce(command("reproduce", "run a logged configuration again and compare", repeat.reproduce))
    _certify(command("certify", "open the sealed set for the memory of a finished run", repeat.certify))
    _tune(command("tune", "search settings: a study of trials, each a run of the log", tune.tune))
    memory.memory_arguments(
        subparsers.add_parser(
            "memory", help="export a run's memory, and look at memories", allow_abbrev=False
        )
    )
    generate.generate_arguments(
        command("generate", "continue a prompt with and without a memory, side by side", generate.generate)
    )
    generate.doctor_arguments(
        command("doctor", "say whether memories work in a model, and what they cost", generate.doctor)
    )
    shared.store(
        command(
            "sync",
            "send to the store what runs that died, or whose store was away, had logged",
            commands.sync,
        )
    )
    own.init_arguments(command("init", "lay out a small project of your own text", own.init))
    own.data_arguments(
        command("data", "report on the rows of a configuration before anything is trained", own.data)
    )
    _config(
        subparsers.add_parser("config", help="check, show or describe a configuration", allow_abbrev=False)
    )
    _bench(subparsers.add_parser("bench", help="measure cedkv beside its peers", allow_abbrev=False))
    _model(subparsers.add_parser("model", help="the model that ships with the package", allow_abbrev=False))
    return parser


def _source(parser: argparse.ArgumentParser) -> None:
    """What makes a resolved configuration."""
    parser.add_argument(
        "--phase", type=int, choices=(2, 3), default=3, help="2: baseline, 3: training (default)"
    )
    parser.add_argument(
        "--phase3-strict-hf", action="store_true", help="refuse every number that is no HF forward"
    )
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override one key"
    )


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration, e.g. configs/smoke.yaml")
    _source(parser)
    parser.add_argument("--explore", action="store_true", help="flag the run for the exploration milestone")
    parser.add_argument(
        "--resume",
        metavar="RUN_ID",
        help="go on with an interrupted run, in its own configuration or --config",
    )
    parser.add_argument(
        "--allow-changed",
        metavar="KEY",
        action="append",
        default=[],
        help="with --resume: a setting, a group of settings or a tag that may differ from what the run began with",
    )


def _reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN_ID", help="id of a finished run, or its beginning")
    shared.store(parser)


def _certify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN_ID", help="id of a finished run, or its beginning")
    shared.store(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the certificate")


def _gate(parser: argparse.ArgumentParser) -> None:
    shared.run(parser, several=True)
    parser.add_argument(
        "--milestone",
        action="store_true",
        help="status 12 where the exploration budget is spent; always show the milestone",
    )
    parser.add_argument("--exit-zero", action="store_true", help="status 0 whatever the verdict")
    parser.add_argument("--dry-run", action="store_true", help="write nothing back to the run")
    parser.add_argument(
        "--format", choices=("table", "json", "markdown", "junit"), default="table", help="of the verdict"
    )


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_ids", nargs="*", metavar="RUN_ID", help="ids of runs; several with --html only")
    parser.add_argument("--latest", action="store_true", help="the newest run of the experiment")
    parser.add_argument(
        "--experiment", metavar="NAME", help=f"default: {shared.DEFAULT_EXPERIMENT}, or the run's own"
    )
    shared.store(parser)
    parser.set_defaults(all=False, dry_run=True)
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown", help="of the report")
    parser.add_argument(
        "--html", metavar="FILE", help="write the dashboards over the runs as one file instead"
    )
    _page_folder(parser)


def _page_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pages", metavar="DIR", help="folder of pages; default: dashboards/ of the project")


def _dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", metavar="NAME", help=f"default: {shared.DEFAULT_EXPERIMENT}")
    parser.add_argument("--port", type=shared.port, default=8050, help="of 127.0.0.1 (%(default)s)")
    parser.add_argument("--check", action="store_true", help="say whether the pages are valid, and end")
    _page_folder(parser)
    shared.store(parser)


def _ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", metavar="NAME", help=f"default: {shared.DEFAULT_EXPERIMENT}")
    parser.add_argument("--port", type=shared.port, default=5000, help="of 127.0.0.1 (%(default)s)")
    shared.store(parser)


def _warnings(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "run_id", nargs="?", metavar="RUN_ID", help="id of a run, or its beginning; default: the newest"
    )
    which.add_argument("--all", action="store_true", help="every run of the experiment")
    parser.add_argument("--experiment", metavar="NAME", help=f"default: {shared.DEFAULT_EXPERIMENT}")
    parser.add_argument(
        "--fail-on",
        choices=("info", "warning", "error"),
        help=f"status {look.WARNED} where one of this level or a worse one is not acknowledged",
    )
    parser.add_argument("--acknowledge", metavar="RULE", help="take note of a warning of RUN_ID, with --note")
    parser.add_argument("--note", metavar="TEXT", help="what was found, what is done about it")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the list")
    _page_folder(parser)
    shared.store(parser)


def _tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="what the study starts from")
    parser.add_argument(
        "--space", metavar="FILE", required=True, help="what it searches, e.g. configs/tune/dual.yaml"
    )
    parser.add_argument(
        "--trials", metavar="N", type=shared.count, default=40, help="of all workers (%(default)s)"
    )
    parser.add_argument(
        "--minutes", metavar="M", type=shared.minutes, help="begin no trial of the search after these"
    )
    parser.add_argument(
        "--patience", metavar="N", type=shared.count, help="end after N trials without a better one"
    )
    parser.add_argument(
        "--then",
        metavar="FILE",
        action="append",
        default=[],
        help="run the best ones at this configuration, too; again for a larger one",
    )
    parser.add_argument(
        "--keep",
        metavar="K",
        type=shared.count,
        default=3,
        help="how many go on to the first --then, half as many to each further one (%(default)s)",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=shared.count, default=3, help="fresh seeds at every --then (%(default)s)"
    )
    parser.add_argument("--study", metavar="NAME", help="its name; workers that give the same one share it")
    parser.add_argument("--storage", metavar="URI", help="where workers meet; default: tune.db under mlruns/")
    parser.add_argument("--out", metavar="FILE", help="the best configuration; default: in build/tune/")
    parser.add_argument("--experiment", metavar="NAME", help=f"default: {shared.DEFAULT_EXPERIMENT}-tune")
    parser.add_argument(
        "--phase3-strict-hf", action="store_true", help="refuse every number that is no HF forward"
    )
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override one key"
    )
    shared.store(parser)


def _config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary, run in (
        ("validate", "say whether a configuration is valid, with every problem", commands.config_validate),
        ("show", "print the resolved configuration and its hash", commands.config_show),
    ):
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        action.add_argument("config", metavar="FILE", help="configuration")
        _source(action)
        action.set_defaults(run=run)
    summary = "print the JSON Schema of configurations"
    schema = actions.add_parser("schema", help=summary, description=summary, allow_abbrev=False)
    schema.set_defaults(run=commands.config_schema)


def _model(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    summary = "describe the embedded model"
    info = actions.add_parser("info", help=summary, description=summary, allow_abbrev=False)
    info.set_defaults(run=commands.model_info)
    summary = "train the embedded model again from its seed, and score it on what it has not seen"
    build = actions.add_parser("build", help=summary, description=summary, allow_abbrev=False)
    build.add_argument(
        "--out",
        metavar="DIR",
        default="build/embedded-model",
        help="where to write it (%(default)s); cedkv/models/embedded replaces the one that ships",
    )
    build.add_argument(
        "--steps", metavar="N", type=shared.count, help="training steps; default: as many as the recipe says"
    )
    build.set_defaults(run=commands.model_build)


def _bench(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    summary = "time stress evaluation, training step, growth, logging and verdicts, next to plain HF and peft"
    speed = actions.add_parser("speed", help=summary, description=summary, allow_abbrev=False)
    speed.set_defaults(run=bench.speed)
    speed.add_argument("--quick", action="store_true", help="small sizes: a minute or two in all")
    speed.add_argument(
        "--only",
        metavar="SECTIONS",
        type=_sections,
        default=SECTIONS,
        help=f"some of {','.join(SECTIONS)}; default: all",
    )
    speed.add_argument(
        "--model",
        default=DEFAULT_SHAPE,
        help=f"{EMBEDDED}, or a shape with random weights: {', '.join(SHAPES)} (%(default)s)",
    )
    speed.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    speed.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    speed.add_argument("--threads", metavar="N", type=shared.count, help="CPU threads; default: torch's")
    speed.add_argument(
        "--repeats", metavar="N", type=shared.count, help="turns of each rival; default: 5, quick 3"
    )
    speed.add_argument("--no-peers", action="store_true", help="without peft's rows")
    speed.add_argument(
        "--out", metavar="DIR", default="build/bench", help="where tables and figure go (%(default)s)"
    )
    speed.add_argument("--json", metavar="FILE", help="write facts, rows and summary to FILE, too")

    _quality(actions)


def _quality(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "compare memories with their peers at equal bytes and steps: ON gain, OFF drift, cost"
    quality = actions.add_parser("quality", help=summary, description=summary, allow_abbrev=False)
    quality.set_defaults(run=bench.quality)
    quality.add_argument("--config", metavar="FILE", required=True, help="e.g. configs/base.yaml")
    quality.add_argument(
        "--seeds",
        metavar="N,N,...",
        type=_seeds,
        default=SEEDS,
        help=f"of data and training; default: {','.join(map(str, SEEDS))}",
    )
    quality.add_argument(
        "--only",
        metavar="METHODS",
        type=_methods,
        help=f"some of {','.join(METHODS)}, computed in the order given; default: all",
    )
    quality.add_argument(
        "--kvpress", metavar="PYTHON", help="an interpreter that has kvpress; without one its rows stay empty"
    )
    quality.add_argument(
        "--read-from",
        metavar="URI",
        action="append",
        default=[],
        help="another store whose finished runs may be taken; again for more",
    )
    quality.add_argument("--force", action="store_true", help="run Phase 2 and Phase 3 anew")
    quality.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override one key"
    )
    quality.add_argument(
        "--out",
        metavar="DIR",
        default="build/quality",
        help="where results, tables and figure go, and from where a benchmark goes on (%(default)s)",
    )
    quality.add_argument("--json", metavar="FILE", help="write all numbers to FILE, too")
    shared.store(quality)


def _methods(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(METHODS)}")
    return tuple(dict.fromkeys(chosen))


def _seeds(text: str) -> tuple[int, ...]:
    found = text.split(",")
    wrong = [seed for seed in found if not seed.isdecimal()]
    if wrong or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different whole numbers, such as 3407,3408")
    return tuple(map(int, found))


def _sections(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return tuple(name for name in SECTIONS if name in chosen)
