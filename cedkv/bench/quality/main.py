"""`cedkv bench quality`: every method on every seed, kept as it is finished; then the tables, the figure and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cedkv.bench import figure as house
from cedkv.bench import machine, peers
from cedkv.bench.quality import figure, ours, overhead, plain, pressed, report
from cedkv.bench.quality.judge import Tables, bytes_of, judge_states
from cedkv.bench.quality.matched import matched
from cedkv.bench.quality.options import KVPRESS, METHODS, OURS, TRAINED, Options
from cedkv.bench.quality.result import Kept, Result, as_json, from_json
from cedkv.bench.quality.setting import Setting
from cedkv.bench.quality.trained import KINDS, trained
from cedkv.bench.timing import timed
from cedkv.config import config_hash
from cedkv.core.errors import UserError
from cedkv.memory.state import States

MARKDOWN, FIGURE, JSON = "quality.md", "quality.svg", "quality.json"
OVERHEAD = "overhead"
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out: as text, as JSON, and whether every check holds."""

    markdown: str
    json: str
    agrees: bool


def measure(options: Options, out: Path, say: Say) -> Outcome:
    """Compute what is missing, one result after the other, and report all that is there for these seeds.

    Args:
        out: folder of tables and figure; results lie in its `results/`. Several processes may share it.

    Raises:
        UserError: a missing peer or store, a configuration that does not work; before anything is computed.
    """
    if set(TRAINED) & set(options.methods):
        peers.check_peft()
    if set(KVPRESS) & set(options.methods) and options.kvpress is not None:
        pressed.check_interpreter(options.kvpress)
    config = Setting(options, options.seeds[0], say).config()
    _make(out / "results")
    kept = Kept(out / "results")
    for seed in options.seeds:
        _compute(Setting(options, seed, say), kept)  # which goes with all that it holds in memory
    first = Setting(options, options.seeds[0], say)
    found = report.Report(
        options.config,
        machine.facts(config.model.device, config.model.dtype),
        config.phase3.thresholds.off_delta_p99_max,
        list(_there([Setting(options, seed, say) for seed in options.seeds], kept)),
        kept.read(kept.path(first.seed, OVERHEAD, settings_of(first, OVERHEAD))) or {},
    )
    drawn = house.can_draw() and figure.draw(found, out / FIGURE)
    if not house.can_draw():
        say(house.MISSING)
    markdown, content = report.to_markdown(found, FIGURE if drawn else None), report.to_json(found)
    (out / MARKDOWN).write_text(markdown)
    (out / JSON).write_text(content)
    return Outcome(markdown, content, all(result.agrees for result in found.results))


def _compute(setting: Setting, kept: Kept) -> None:
    """The methods of one seed that are not there yet; on the first seed also what generation costs."""
    options = setting.options
    for method in options.methods:
        if method in KVPRESS and options.kvpress is None:
            continue
        path = kept.path(setting.seed, method, settings_of(setting, method))
        if kept.read(path) is None or (options.force and method in OURS):
            kept.write(path, as_json(make(setting, kept, method)))
            setting.say(f"seed {setting.seed}: {METHODS[method]} is done")
    path = kept.path(setting.seed, OVERHEAD, settings_of(setting, OVERHEAD))
    if setting.seed == options.seeds[0] and kept.read(path) is None and set(TRAINED) & set(options.methods):
        setting.say("timing generation ...")
        kept.write(path, overhead.measure(setting))


def _there(settings: list[Setting], kept: Kept) -> Iterator[Result]:
    """Every result of these seeds that is on disk, whoever computed it."""
    for setting in settings:
        for method in METHODS:
            content = kept.read(kept.path(setting.seed, method, settings_of(setting, method)))
            if content is not None:
                yield from_json(content)
            elif method in KVPRESS and setting.options.kvpress is None and method in setting.options.methods:
                yield Result(method, setting.seed, absent=pressed.NOBODY)


def settings_of(setting: Setting, method: str) -> Mapping[str, Any]:
    """What a method's result depends on."""
    tuning = setting.options.tuning
    found: dict[str, Any] = {"config": config_hash(setting.config())}
    if method in TRAINED:
        found["tuning"] = [
            tuning.seed,
            tuning.documents,
            tuning.stress,
            list(tuning.rates),
            dict(tuning.first),
        ]
    return found


def make(setting: Setting, kept: Kept, method: str) -> Result:
    """Compute one result."""
    makers: dict[str, Callable[[], Result]] = {
        "base": partial(_base, setting),
        "full_context": partial(_full, setting),
        "random_slots": partial(
            _slots, setting, method, lambda: plain.random_slots(setting.experiment, setting.seed)
        ),
        "attention_matching": partial(_slots, setting, method, partial(_matched, setting)),
        "phase2": partial(ours.from_run, setting, 2),
        "phase3": partial(ours.from_run, setting, 3),
        **{name: partial(pressed.pressed, setting, name) for name in KVPRESS},
        **{
            name: partial(trained, setting, kept, KINDS[name.removesuffix("_off")], off=name.endswith("_off"))
            for name in TRAINED
        },
    }
    return makers[method]()


def _base(setting: Setting) -> Result:
    return _result("base", setting, plain.judge_bare(setting.experiment), 0, 0.0)


def _full(setting: Setting) -> Result:
    whole = plain.FullContext(setting.experiment)
    seconds, documents = timed(lambda: whole.documents)
    largest = max(map(bytes_of, documents))
    return _result("full_context", setting, plain.judge_full(setting.experiment, whole), largest, seconds)


def _matched(setting: Setting) -> States:
    experiment = setting.experiment
    return matched(experiment, setting.slots, experiment.bank.spec.injection, "answers")


def _slots(setting: Setting, method: str, build: Callable[[], States]) -> Result:
    seconds, states = timed(build)
    return _result(method, setting, judge_states(setting.experiment, states), bytes_of(states), seconds)


def _result(method: str, setting: Setting, tables: Tables, size: int, seconds: float) -> Result:
    return Result(method, setting.seed, tables.on, tables.stress, bytes=size, seconds=seconds)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {str(folder.parent)!r} is no folder to write to ({error.strerror}); name another"
        ) from error
