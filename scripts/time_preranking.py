"""How much of the true hard pool does a proxy find, and what does it save? A table on standard output.

Every OFF training prompt is measured under every state by real passes; the proxy ranks the same prompts from cached
attention. Recall is the share of the truly hardest prompts among those that the proxy ranks first.

    python scripts/time_preranking.py configs/base.yaml --off 100000
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from cedkv.config import load
from cedkv.core.proxy import spearman
from cedkv.evaluate import stress
from cedkv.train.experiment import prepare
from cedkv.train.loss_source import Proxies
from cedkv.train.proxy import proxy_off, recall

T = TypeVar("T")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--off", type=int, default=100_000, help="OFF training prompts")
    parser.add_argument(
        "--phase", type=int, choices=(2, 3), default=2, help="2: anchors; 3: as training starts"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    overrides = [f"phase3.eval.off_samples={options.off}", *options.overrides]
    config = load(options.config, overrides, phase=options.phase, env=os.environ).config
    experiment = prepare(config, options.phase)
    states = experiment.bank.states(config.phase3.candidate.pool_size).detach()
    proxies, rows = Proxies(experiment), config.phase3.eval.batch_rows
    ends, captured = _timed(lambda: proxies.off)
    proxy, ranking = _timed(lambda: proxy_off(ends, states))
    result, measuring = _timed(lambda: stress(experiment.model, states, experiment.off, batch_rows=rows))
    _say(f"{len(proxy)} prompts x {states.count} states, phase {options.phase}")
    _say(f"attention cached once {captured:.1f} s; ranked {ranking:.1f} s; all measured {measuring:.1f} s")
    _say(
        f"Spearman over pairs {spearman(proxy, result.kl):.3f}, over prompts {_of_prompts(proxy, result.kl):.3f}"
    )
    worst = proxy.amax(1)
    _say("| pool | " + " | ".join(f"recall at {n} x" for n in (1, 2, 4, 8)) + " | seconds at 4 x |")
    _say("| --- | --- | --- | --- | --- | --- |")
    for pool in (64, 256, 1024):
        found = [recall(worst, result.delta, n * pool, pool) for n in (1, 2, 4, 8)]
        first = sorted(worst.argsort(descending=True)[: 4 * pool].tolist())
        part = experiment.off.take(first)
        _, seconds = _timed(lambda part=part: stress(experiment.model, states, part, batch_rows=rows))
        _say(f"| {pool} | " + " | ".join(f"{x:.3f}" for x in found) + f" | {ranking + seconds:.1f} |")


def _of_prompts(proxy: torch.Tensor, kl: torch.Tensor) -> float:
    return spearman(proxy.amax(1), kl.amax(1))


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
