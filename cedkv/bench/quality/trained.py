"""Prefix tuning, cartridges and LoRA: started as peft starts them, trained with Phase 3's prompts and steps."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from cedkv.bench.quality.adapters import (
    Adapters,
    LowRank,
    first_tokens,
    random_prefix,
    rank_for,
    slots_for,
)
from cedkv.bench.quality.fit import plan_of, score, train
from cedkv.bench.quality.identity import Kind, identity
from cedkv.bench.quality.judge import judge_passes, stress_by_passes
from cedkv.bench.quality.result import Kept, Result
from cedkv.bench.quality.setting import Setting

KINDS: dict[str, Kind] = {"prefix": "prefix", "cartridge": "cartridge", "lora": "lora"}


def start(setting: Setting, kind: Kind) -> Adapters:
    """The adapters of all documents as peft starts them, of at least cedkv's bytes each."""
    experiment = setting.experiment
    model, contexts = experiment.model, experiment.encoded.contexts
    generator = torch.Generator().manual_seed(setting.seed)
    if kind == "lora":
        return LowRank(model, len(contexts), rank_for(model, setting.budget), generator)
    slots = slots_for(model, setting.budget)
    if kind == "prefix":
        return random_prefix(model, len(contexts), slots, generator)
    return first_tokens(model, [context.ids for context in contexts], slots)


def trained(setting: Setting, kept: Kept, kind: Kind, *, off: bool) -> Result:
    """Train, judge, and compare a sample with peft itself."""
    name = f"{kind}_off" if off else kind
    rate, tried = best_rate(setting, kept, kind, off=off)
    experiment, material = setting.experiment, setting.material
    setting.say(f"seed {setting.seed}: training {name} ...")
    plan = plan_of(experiment, rate=rate, off=off, documents=len(experiment.encoded.contexts))
    started = time.perf_counter()
    adapters = start(setting, kind)
    train(adapters, material, plan)
    seconds = time.perf_counter() - started
    setting.say(f"seed {setting.seed}: judging {name} ...")
    tables = judge_passes(experiment, adapters)
    told = f"learning rate {rate:g} of {', '.join(f'{r:g}' for r in tried)}"
    return Result(
        name,
        setting.seed,
        tables.on,
        tables.stress,
        bytes=adapters.bytes,
        seconds=seconds,
        notes=(f"{_size(adapters)}; {told}",),
        checks=identity(experiment, adapters, kind),
        facts={"rate": rate, "tried": tried, "steps": plan.steps, "on_per_document": plan.on},
    )


def _size(adapters: Adapters) -> str:
    if isinstance(adapters, LowRank):
        return f"rank {adapters.down[0].shape[1]}"
    slots = adapters.get_parameter("table").shape[1]
    return f"{slots} slots in every layer"


def best_rate(setting: Setting, kept: Kept, kind: Kind, *, off: bool) -> tuple[float, dict[float, float]]:
    """The learning rate with the lowest held-out loss of the variant on the tuning seed, and what all of them had."""
    tuning = setting.options.tuning
    settings = tuning_settings(setting, off=off)
    path = kept.path(tuning.seed, f"rate_{kind}{'_off' * off}", settings)
    content = kept.read(path)
    if content is None:
        content = {str(rate): value for rate, value in _searched(setting, kind, off=off).items()}
        kept.write(path, content)
    tried = {float(rate): value for rate, value in content.items()}
    return min(tried, key=lambda rate: tried[rate]), tried


def tuning_settings(setting: Setting, *, off: bool) -> dict[str, object]:
    """What the search depends on: the configuration but for its seeds."""
    config = replace(setting, seed=setting.options.tuning.seed).config()
    tuning = setting.options.tuning
    return {
        "config": config.model_dump(mode="json", exclude={"tracking", "checkpoint", "base_dir"}),
        "off": off,
        "documents": tuning.documents,
        "stress": tuning.stress,
        "rates": list(tuning.rates),
        "first": dict(tuning.first),
    }


def _searched(setting: Setting, kind: Kind, *, off: bool) -> dict[float, float]:
    """Held-out losses of learning rates: those around the kind's usual one, and beyond an end that is the best so far."""
    tuning = setting.options.tuning
    middle = tuning.rates.index(dict(tuning.first)[kind])
    found = {at: _held_out(setting, kind, tuning.rates[at], off=off) for at in range(middle - 1, middle + 2)}
    for _ in range(tuning.further):
        best = min(found, key=lambda at: found[at])
        beyond = best - 1 if best == min(found) else best + 1
        if beyond in found or not 0 <= beyond < len(tuning.rates):
            break
        found[beyond] = _held_out(setting, kind, tuning.rates[beyond], off=off)
    return {tuning.rates[at]: found[at] for at in sorted(found)}


def _held_out(setting: Setting, kind: Kind, rate: float, *, off: bool) -> float:
    """ON evaluation prompts, and stress prompts where the variant knows OFF prompts; infinite where it diverged."""
    few = tuning_setting(setting)
    documents = setting.config().phase3.eval.on_samples
    setting.say(f"seed {few.seed} (not reported): {kind}{' + OFF' * off} at learning rate {rate:g} ...")
    plan = plan_of(few.experiment, rate=rate, off=off, documents=documents)
    adapters = start(few, kind)
    train(adapters, few.material, plan)
    drifts = stress_by_passes(few.experiment, adapters, few.experiment.stress).kl if off else None
    loss = score(adapters, few.experiment, plan, drifts)
    return loss if math.isfinite(loss) else math.inf


_TUNED: dict[tuple[object, ...], Setting] = {}


def tuning_setting(setting: Setting) -> Setting:
    """A few documents of the tuning seed, prepared once for all peers."""
    tuning, phase3 = setting.options.tuning, setting.config().phase3
    evaluation, pool = phase3.eval, phase3.train.off_batch
    documents = min(tuning.documents, evaluation.on_samples)
    share = documents / evaluation.on_samples
    off = max(64, pool, round(evaluation.off_samples * share / 4))
    extra = (
        f"phase3.eval.on_samples={documents}",
        f"phase3.eval.off_samples={off}",
        f"phase3.eval.off_fixed_stress.size={min(tuning.stress, evaluation.off_fixed_stress.size)}",
        f"phase3.loss.off.hard_pool_size={pool}",
        "phase3.loss.off.prerank=null",
    )
    key = (setting.options.config, setting.options.overrides, tuning)
    if key not in _TUNED:
        _TUNED[key] = Setting(setting.options, tuning.seed, setting.say, (*setting.extra, *extra))
    return _TUNED[key]
