"""What a study shows: a row for every trial, a table for people, the best configuration as a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cedkv import ledger
from cedkv.config import yaml12
from cedkv.config.load import set_key
from cedkv.config.schema import JsonlData
from cedkv.tuner.score import Score
from cedkv.tuner.spec import Scalar
from cedkv.tuner.studies import ENDED, OBJECTIVES, RUNS, ranked, score_of, scored

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from cedkv.tuner.scale import Scale
    from cedkv.tuner.worker import Plan


def as_metrics(score: Score) -> dict[str, float]:
    """A score as metrics of the run that it is of."""
    broken = {ledger.TUNE_BROKEN_PREFIX + name: value for name, value in score.broken.items()}
    return {ledger.TUNE_OBJECTIVE: score.objective} | broken


def rows(trials: Iterable[FrozenTrial], scale: str) -> list[dict[str, Any]]:
    """A row for every trial of one scale, flat: who, how it ended, what it was worth, what it was run with."""
    listed = list(trials)
    ranks = {trial.number: rank for rank, (trial, _) in enumerate(ranked(listed), start=1)}
    return [{"scale": scale, **_row(trial, ranks.get(trial.number))} for trial in listed]


def _row(trial: FrozenTrial, rank: int | None) -> dict[str, Any]:
    score = score_of(trial)
    worth = None if score is None else scored(score)
    return {
        "trial": trial.number,
        "rank": rank,
        "outcome": trial.state.name.lower() if score is None else _outcome(score),
        "objective": None if worth is None else worth["objective"],
        "excess": None if score is None else score.excess,
        **({} if worth is None else worth["metrics"]),
        **trial.params,
        "seeds": len(trial.user_attrs.get(OBJECTIVES, [])),
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
        "ended": trial.user_attrs.get(ENDED, ""),
        "runs": trial.user_attrs.get(RUNS, []),
    }


def _outcome(score: Score) -> str:
    broken = [name for name, value in score.broken.items() if value > 0]
    return f"breaks {', '.join(broken)}" if broken else "keeps all"


def table(plan: Plan, trials: Sequence[FrozenTrial], most: int = 5) -> str:
    """The current configuration and the best ones, in Markdown."""
    names = list(dict.fromkeys([*plan.spec.objective, *plan.spec.constraints]))
    found = ranked(trials)
    shown = [pair for pair in found if pair[0].params == plan.current][:1]
    shown += [pair for pair in found if pair[0].params != plan.current][:most]
    keys = list(plan.spec.space)
    head = ["trial", *(key.rpartition(".")[2] for key in keys), "objective", *names, "seeds", "constraints"]
    lines = [_line(head), _line("---" for _ in head)]
    for trial, score in shown:
        name = f"{trial.number} (current)" if trial.params == plan.current else str(trial.number)
        values = [_short(trial.params[key]) for key in keys]
        read = [_short(score.metrics.get(metric)) for metric in names]
        kept = _outcome(score)
        count = len(trial.user_attrs.get(OBJECTIVES, []))
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
    for override in scale.written(changes):
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
