"""What a study shows: a row for every trial, a table for people, the best configuration as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cedkv import ledger
from cedkv.config import yaml12
from cedkv.config.load import set_key
from cedkv.config.schema import JsonlData
from cedkv.tracking.encode import encode_json, encode_lines
from cedkv.tuner.score import Score
from cedkv.tuner.spec import Scalar
from cedkv.tuner.studies import RUNS, ranked, score_of, scored

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from cedkv.tuner.runs import Scale
    from cedkv.tuner.worker import Plan


def as_metrics(score: Score) -> dict[str, float]:
    """A score as metrics of the run that it is of."""
    broken = {ledger.TUNE_BROKEN_PREFIX + name: value for name, value in score.broken.items()}
    return {ledger.TUNE_OBJECTIVE: score.objective} | broken


def rows(trials: Iterable[tuple[int, FrozenTrial]]) -> list[dict[str, Any]]:
    """A row for every trial, of the scale that stands before it."""
    return [_row(scale, trial) for scale, trial in trials]


def _row(scale: int, trial: FrozenTrial) -> dict[str, Any]:
    score = score_of(trial)
    worth = {"objective": None, "broken": {}, "metrics": {}} if score is None else scored(score)
    return {
        "scale": scale,
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "feasible": score is not None and score.feasible,
        **worth,
        "params": trial.params,
        "runs": trial.user_attrs.get(RUNS, []),
        "objectives": trial.user_attrs.get("objectives", []),
        "ended": trial.user_attrs.get("ended", ""),
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
    }


def files(
    trials: Iterable[tuple[int, FrozenTrial]], importance: Mapping[str, float] | None
) -> dict[str, str]:
    """What the study's run holds: the rows, and the importance of each key where it is known."""
    found = {ledger.TUNE_TRIALS: encode_lines(rows(trials))[0]}
    if importance:
        listed = [{"key": key, "importance": share} for key, share in importance.items()]
        found[ledger.TUNE_IMPORTANCE] = encode_json(listed)[0]
    return found


def table(plan: Plan, trials: Sequence[FrozenTrial], most: int = 5) -> str:
    """The current configuration and the best ones, in Markdown."""
    names = list(dict.fromkeys([*plan.spec.objective, *plan.spec.constraints]))
    found = ranked(trials)
    shown = [pair for pair in found if pair[0].params == plan.current][:1]
    shown += [pair for pair in found if pair[0].params != plan.current][:most]
    keys = list(plan.spec.space)
    head = ["trial", *(key.rpartition(".")[2] for key in keys), "objective", *names, "seeds", "kept"]
    lines = [_line(head), _line("---" for _ in head)]
    for trial, score in shown:
        name = f"{trial.number} (current)" if trial.params == plan.current else str(trial.number)
        values = [_short(trial.params[key]) for key in keys]
        read = [_short(score.metrics.get(metric)) for metric in names]
        kept = "yes" if score.feasible else "no: " + ", ".join(k for k, v in score.broken.items() if v > 0)
        count = len(trial.user_attrs.get("objectives", []))
        lines.append(_line([name, *values, _short(score.objective), *read, str(count), kept]))
    return "\n".join(lines) + "\n"


def best_config(plan: Plan, study_run: str, trial: FrozenTrial, table_text: str) -> str:
    """The configuration of the last scale with the best trial's keys, its evidence above it."""
    scale = plan.scales[-1]
    told = [
        f"Study {plan.name!r}, run {study_run}, trial {trial.number} of {scale.file.name}.",
        f"Its runs: {', '.join(trial.user_attrs.get(RUNS, []))}.",
        "The current configuration stays the best one that was found."
        if trial.params == plan.current
        else "Changed: "
        + ", ".join(
            f"{key} from {_short(plan.current[key])} to {_short(value)}"
            for key, value in trial.params.items()
            if value != plan.current[key]
        ),
        *table_text.splitlines(),
    ]
    return "".join(f"# {line}\n" for line in told) + yaml12.dump(_raw(scale, trial.params))


def _raw(scale: Scale, changes: Mapping[str, Scalar]) -> dict[str, Any]:
    """The file with its overrides and these changes; with its folder, where it names files beside it."""
    raw = yaml12.read(scale.file)
    for override in (*scale.overrides, *(f"{key}={json.dumps(value)}" for key, value in changes.items())):
        set_key(raw, override)
    config = scale.config(changes)
    if isinstance(config.data, JsonlData) or config.model.name_or_path.startswith("."):
        raw["base_dir"] = config.base_dir
    return raw


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
