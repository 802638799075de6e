"""From a file, ``--set`` overrides, flags and the environment to a ``Config``, before torch is imported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cedkv.config import yaml12
from cedkv.config.problems import no_value, problems_of, user_error
from cedkv.config.rules import Problem
from cedkv.config.schema import Config
from cedkv.core.errors import UserError

PHASES = (2, 3)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and what its author should know about how it was read, one line each."""

    config: Config
    notes: tuple[str, ...] = ()


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    phase: int = 3,
    strict_hf: bool = False,
    env: Mapping[str, str],
) -> Loaded:
    """Read and resolve the configuration file ``path``.

    Args:
        path: a YAML file; relative paths inside it start at its folder.
        overrides: ``key.path=value`` settings that win over the file, later ones over earlier ones.
        phase: 3 trains; 2 is the baseline and resolves ``mix.mode`` to ``anchor``, ``mix.slot_gate`` and
            ``mix.value_residual`` to ``none``.
        strict_hf: sets ``runtime.strict_hf``.
        env: the environment; ``CI=true`` forces ``policy_mode: prod``.

    Raises:
        UserError: naming every problem with key, value, rule and remedy.
    """
    if phase not in PHASES:
        raise UserError(f"phase {phase} does not exist; give 2 (baseline) or 3 (training)")
    file = Path(path)
    raw = yaml12.read(file)
    for override in overrides:
        set_key(raw, override)
    notes: list[str] = []
    problems = _deprecated(raw, notes)
    _fill(raw, file.resolve().parent)
    _force(raw, env, notes, strict_hf=strict_hf)
    config = _validated(raw, str(file), problems, notes)
    mix = config.phase3.mix
    trains = mix.mode != "anchor" or mix.slot_gate != "none" or mix.value_residual != "none"
    if phase == 2 and trains:
        _group(raw, "phase3", "mix").update(mode="anchor", slot_gate="none", value_residual="none")
        config = _validated(raw, str(file), [], notes)
    if phase == 3 and not trains:
        rule = "trains nothing, which is Phase 2; use --phase 2, v_only or kv, or mix.slot_gate: affine"
        raise user_error(str(file), [Problem("phase3.mix.mode", "anchor", rule)])
    return Loaded(config, tuple(notes))


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    phase: int = 3,
    strict_hf: bool = False,
    env: Mapping[str, str],
) -> Config:
    """As `load`, with the notes as Python warnings."""
    loaded = load(path, overrides, phase=phase, strict_hf=strict_hf, env=env)
    for note in loaded.notes:
        warnings.warn(note, stacklevel=2)
    return loaded.config


def from_logged(raw: Mapping[str, Any], origin: str) -> Config:
    """A resolved configuration as a run logged it. Nothing is filled in, converted or forced.

    Raises:
        UserError: it is not valid for this version; `origin` names it in the message.
    """
    return _validated(dict(raw), origin, [], [])


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML; loading it gives an equal configuration with the same hash."""
    return yaml12.dump(config.model_dump(mode="json"))


def _validated(raw: dict[str, Any], origin: str, problems: list[Problem], notes: list[str]) -> Config:
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise user_error(origin, [*problems, *problems_of(error)], notes) from None
    if problems:
        raise user_error(origin, problems, notes)
    return config


def set_key(raw: dict[str, Any], override: str) -> None:
    """Apply one ``key.path=value``, its value read like a value in a file."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override!r} is not key.path=value; write e.g. --set phase3.train.steps=200")
    value = yaml12.parse(text, f"--set {key.strip()}")
    target: Any = raw
    for depth, part in enumerate(parts[:-1], start=1):
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            group = ".".join(parts[:depth])
            raise UserError(
                f"--set {override!r}: {group} holds {target!r}, no group of keys; set {group} itself"
            )
    target[parts[-1]] = value


def _group(raw: dict[str, Any], *path: str) -> dict[str, Any]:
    """The group of keys at ``path``, made where it is absent; a throw-away one where something else stands there."""
    target = raw
    for part in path:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            return {}  # validation reports what stands there instead
        target = inner
    return target


def _deprecated(raw: dict[str, Any], notes: list[str]) -> list[Problem]:
    """Convert the old ``cvar_q`` (the quantile) to ``cvar_tail_fraction`` (the share above it)."""
    off = _group(raw, "phase3", "loss", "off")
    if "cvar_q" not in off:
        return []
    key, value = "phase3.loss.off.cvar_q", off.pop("cvar_q")
    if "cvar_tail_fraction" in off:
        return [no_value(key, "stands beside cvar_tail_fraction, which replaces it; delete cvar_q")]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        return [Problem(key, value, "must be a number ≥ 0 and < 1; better, give cvar_tail_fraction = 1 - q")]
    off["cvar_tail_fraction"] = tail = round(1 - value, 12)
    notes.append(f"{key} is deprecated; {value} was read as cvar_tail_fraction: {tail}, write that instead")
    return []


def _fill(raw: dict[str, Any], folder: Path) -> None:
    """Defaults that depend on where the file lies, or that validation needs to choose a branch."""
    written = raw.get("base_dir", ".")
    if isinstance(written, str) and written:
        raw["base_dir"] = str((folder / Path(written).expanduser()).resolve())
    _group(raw, "data").setdefault("source", "generated")


def forces_prod(env: Mapping[str, str]) -> bool:
    """Whether the environment (``CI=true``) allows no policy mode but ``prod``."""
    return env.get("CI", "").strip().lower() in {"true", "1"}


def _force(raw: dict[str, Any], env: Mapping[str, str], notes: list[str], *, strict_hf: bool) -> None:
    """What the environment and the flags decide over the file."""
    runtime = _group(raw, "phase3", "runtime")
    if forces_prod(env) and runtime.get("policy_mode") == "debug":
        runtime["policy_mode"] = "prod"
        notes.append("phase3.runtime.policy_mode: debug was forced to prod because CI is set")
    if strict_hf and isinstance(runtime.get("strict_hf", False), bool):
        runtime["strict_hf"] = True
