"""What a study searches, what it minimises and what it must keep: one YAML file, read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, Strict, ValidationError, model_validator

from cedkv import ledger
from cedkv.config import Config, yaml12
from cedkv.config.base import Count, Section, Share, section
from cedkv.config.problems import RULES
from cedkv.core.errors import UserError
from cedkv.release.evidence import lookup, number

Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$")]
Scalar = bool | int | float | str | None

MEASURES: Final = frozenset(
    {
        ledger.ON_GAIN,
        ledger.ON_GAIN_RECOVERED,
        ledger.ON_LOGP_GAIN,
        ledger.ON_ACC_STUDENT,
        ledger.REL_KL_TO_TEACHER,
        ledger.DELTA_ON_MEAN,
        ledger.P99_STRESS,
        ledger.P99_TYPICAL,
        ledger.P99_UPPER,
        ledger.MEAN_STRESS,
        ledger.MAX_STRESS,
        ledger.DUAL_STD,
        ledger.DUAL_PEAK_TO_PEAK,
        ledger.DUAL_SETTLING_TICK,
        ledger.DUAL_SETTLING_SHARE,
        ledger.DUAL_VIOLATION,
        ledger.DUAL_TRACKING,
        ledger.SECONDS_TOTAL,
    }
)
"""Metrics of a finished run that an objective or a constraint may read."""

SEARCHED: Final = ("layer_scope", "memory", "mix", "candidate", "warm_start", "loss", "train")
"""Sections of ``phase3`` that a space may name; the others say what trials are measured on and held to."""
SEED: Final = "phase3.train.seed"


class Range(Section):
    """What one key may be: a range, or some values."""

    low: Annotated[float, Strict(False)] | None = None
    """smallest value"""
    high: Annotated[float, Strict(False)] | None = None
    """largest value"""
    log: bool = False
    """search its logarithm"""
    whole: bool = False
    """whole numbers only"""
    choices: Annotated[tuple[Scalar, ...], Strict(False), Field(min_length=2)] | None = None
    """or these values"""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        ranged = self.low is not None or self.high is not None
        if ranged == (self.choices is not None):
            raise ValueError("give low and high, or choices")
        if self.choices is not None:
            if self.log or self.whole:
                raise ValueError("log and whole belong to low and high; choices are taken as they are")
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("a choice stands here twice; name each once")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"low {self.low} and high {self.high} make no range; give low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; a logarithm needs low > 0")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low {self.low:g} and high {self.high:g} of whole numbers must be whole")
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value of the configuration lies in the range."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        assert self.low is not None
        assert self.high is not None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The values that a check has to try."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


class Bound(Section):
    """What a metric must keep; one of the three."""

    most: Annotated[float, Strict(False)] | Key | None = None
    """largest allowed value: a number, or a key of the configuration"""
    least: Annotated[float, Strict(False)] | Key | None = None
    """smallest allowed value"""
    drop: Annotated[float, Strict(False), Field(ge=0)] | None = None
    """how far it may lie under the Phase 2 run on the same data"""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [value for value in (self.most, self.least, self.drop) if value is not None]
        if len(given) != 1:
            raise ValueError("give one of most, least and drop")
        return self


class Pruning(Section):
    """When a trial is ended before its time: at an eval tick at which it is among the worst so far."""

    keep: Annotated[float, Field(gt=0, le=1)] = 0.75
    """share of the trials that go on; 1: none is pruned"""
    after_trials: Count = 5
    """trials that are never pruned, from the first"""
    after_share: Share = 0.4
    """share of its steps that every trial is given"""


class Spec(Section):
    """A file of `configs/tune/`."""

    space: Annotated[dict[Key, Range], Field(min_length=1)]
    """what is searched, by key of the configuration"""
    objective: Annotated[dict[str, Annotated[float, Strict(False), Field(ge=0)]], Field(min_length=1)]
    """what is minimised: the sum of these metrics, each times its weight"""
    constraints: Annotated[dict[str, Bound], Field(default_factory=dict)]
    """what has to hold, by metric; a trial that breaks one never wins over one that does not"""
    seeds: Count = 1
    """runs of one configuration at most, each with data and order of its own: as many as are needed to tell it from the best"""
    startup: Count = 10
    """configurations drawn at random, the current one among them, before the search learns from them"""
    pruning: Pruning = section(Pruning)
    """when a trial is ended before its time"""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in (*self.objective, *self.constraints):
            if name not in MEASURES:
                raise ValueError(
                    f"{name!r} is no metric of a finished run; one of {', '.join(sorted(MEASURES))} is"
                )
        return self


def read_spec(path: Path) -> Spec:
    """The spec in a file.

    Raises:
        UserError: it is none; every mistake with its place, value and rule.
    """
    try:
        return Spec.model_validate(yaml12.read(path))
    except ValidationError as error:
        lines = [_sentence(detail) for detail in error.errors(include_url=False)]
    told = lines[0] if len(lines) == 1 else "\n  - ".join([f"{len(lines)} problems:", *lines])
    raise UserError(f"{path}: {told}")


def check_space(
    spec: Spec, current: Config, resolved: Callable[[Mapping[str, Scalar]], Config]
) -> dict[str, Any]:
    """The current values of the searched keys.

    Args:
        current: the configuration that the study starts from.
        resolved: makes it with some keys changed; raises `UserError` for values that are not allowed.

    Raises:
        UserError: a key that does not exist, or whose range holds values that it may not have or not the current one.
    """
    values = current.model_dump(mode="json")
    found = {}
    for key, allowed in spec.space.items():
        section, _, name = key.partition(".")
        if section != "phase3" or name.partition(".")[0] not in SEARCHED or key == SEED:
            raise UserError(
                f"space.{key}: says what trials are measured on or held to, which is the same for all of them; search keys of "
                f"phase3.{{{','.join(SEARCHED)}}}"
            )
        value = lookup(values, key)
        if isinstance(value, dict) or (value is None and not allowed.holds(None)):
            raise UserError(f"space.{key}: the configuration has no such key; configs/README.md lists them")
        if not allowed.holds(value):
            raise UserError(
                f"space.{key}: the current value {value!r} lies outside, and a study starts from it: widen the range, or change "
                "the configuration"
            )
        for end in allowed.ends:
            try:
                resolved({key: end})
            except UserError as error:
                if f" {key} " in f" {error} ".replace(
                    ":", " "
                ):  # what else it would need may be searched, too
                    raise UserError(
                        f"space.{key}: its value {end!r} is none the key may have: {error}"
                    ) from None
        found[key] = value
    for metric, bound in spec.constraints.items():
        limit_of(bound, metric, values)
    return found


def limit_of(bound: Bound, metric: str, config: Mapping[str, Any]) -> float:
    """The number of a bound; `UserError` where it names a key that holds none."""
    given = next(value for value in (bound.most, bound.least, bound.drop) if value is not None)
    value = number(config, given) if isinstance(given, str) else given
    if value is None:
        raise UserError(f"constraints.{metric}: {given} is no key of the configuration that holds a number")
    return value


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"] if part not in {"float", "constrained-str"})
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"{place}: unknown key; configs/tune/README.md lists what is known here"
    if kind == "missing":
        return f"{place}: is missing; configs/tune/README.md says what it is"
    told = (
        RULES[kind](detail.get("ctx", {})) if kind in RULES else detail["msg"].removeprefix("Value error, ")
    )
    return f"{place} = {str(detail['input'])[:80]!r}: {told}" if place else told
