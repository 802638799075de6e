"""Where the ON and OFF losses come from: real passes, proxies, both, or proxies until they prove too weak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cedkv import ledger
from cedkv.core.risk import cvar
from cedkv.data.batching import every_nth
from cedkv.evaluate import StressResult
from cedkv.injection.ends import Ends, ends_of
from cedkv.memory.bank import MemoryBank
from cedkv.train.experiment import Experiment
from cedkv.train.proxy import (
    SAMPLE,
    OnEnds,
    Scale,
    fitted_scale,
    off_truth,
    on_ends,
    on_truth,
    proxy_off,
    proxy_off_of,
    recall,
    scatter,
    taken,
)
from cedkv.train.step import on_losses

RECALLED = 32
"""One of so many stress prompts counts as hard where the recall of the proxy's ranking is measured."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a tick found out about the proxies: metrics, rows of the scatter table, and the factors to nats."""

    metrics: dict[str, float]
    rows: list[dict[str, float | int]]
    scale: Scale


class Proxies:
    """The cached attention of an experiment's prompts; each part is read when it is first needed."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._team = experiment, experiment.team
        self._layers = experiment.bank.spec.injection
        self._rows = experiment.config.phase3.eval.batch_rows

    @cached_property
    def stress(self) -> Ends:
        """The fixed stress prompts."""
        prompts = [row.prompt for row in self._experiment.encoded.stress]
        return ends_of(self._experiment.model, prompts, self._layers, rows=self._rows, team=self._team)

    @cached_property
    def off(self) -> Ends:
        """The OFF training prompts."""
        prompts = [row.prompt for row in self._experiment.encoded.off_train]
        return ends_of(self._experiment.model, prompts, self._layers, rows=self._rows, team=self._team)

    @cached_property
    def on(self) -> OnEnds:
        """All ON training prompts."""
        return self._on(range(len(self._experiment.encoded.on_train)))

    @cached_property
    def sample(self) -> OnEnds:
        """A fixed sample of them."""
        return self._on(every_nth(range(len(self._experiment.encoded.on_train)), SAMPLE))

    def _on(self, places: Sequence[int]) -> OnEnds:
        experiment = self._experiment
        return on_ends(
            experiment.model, experiment.encoded, places, self._layers, rows=self._rows, team=self._team
        )

    @torch.no_grad()
    def ranked_off(self, bank: MemoryBank, k: int, count: int) -> list[int]:
        """The `count` OFF training prompts whose largest proxy over states is largest, largest first."""
        worst = proxy_off(self.off, bank.states(k).detach(), self._team).amax(1)
        return worst.argsort(descending=True, stable=True)[:count].tolist()

    def on_term(self, bank: MemoryBank, k: int, places: Sequence[int]) -> Tensor:
        """Mean `proxy_on` of the ON training prompts at `places`, differentiable."""
        of_prompt = {place: n for n, place in enumerate(self.on.places)}
        wanted = torch.tensor([of_prompt[place] for place in places], device=self.on.prompt.device)
        chosen = torch.isin(self.on.prompt, wanted).nonzero().flatten()
        document, inverse = self.on.document[chosen].unique(return_inverse=True)
        prompt, of_batch = self.on.prompt[chosen].unique(return_inverse=True)
        part = OnEnds(
            tuple(prompt.tolist()),
            of_batch,
            inverse,
            taken(self.on.bare, chosen),
            taken(self.on.teacher, chosen),
        )
        return part.values(bank.states(k, document)).mean()

    def off_term(self, bank: MemoryBank, k: int, places: Sequence[int], tail_fraction: float) -> Tensor:
        """CVaR over the OFF training prompts at `places` of the largest `proxy_off` over states, differentiable."""
        ends, states = taken(self.off, places), bank.states(k)
        worst = proxy_off(ends, states.detach()).argmax(1)
        return cvar(proxy_off_of(ends, states, worst), tail_fraction)

    @torch.no_grad()
    def truth(self, bank: MemoryBank, k: int, step: int, result: StressResult) -> Truth:
        """Both proxies against what was measured: the stress set of a tick, and the sample of ON training prompts."""
        experiment, off = self._experiment, self._experiment.config.phase3.loss.off
        states = bank.states(k).detach()
        proxy = proxy_off(self.stress, states, self._team).cpu()
        batch = [experiment.encoded.on_train[i] for i in self.sample.places]
        teacher = [experiment.teacher_train[i] for i in self.sample.places]
        prompts = experiment.on.take(self.sample.places)
        kl, nll = (
            on_losses(
                experiment.model, bank, k, batch, prompts, teacher=teacher, kind=kind, rows=self._rows
            ).values.cpu()
            for kind in ("kl", "answer_nll")
        )
        on = self.sample.values(states).cpu()
        top = max(1, len(proxy) // RECALLED)
        first = (off.prerank or 4) * top
        metrics = {
            **off_truth(proxy, result.kl),
            **on_truth(on, kl, -nll),
            ledger.PROXY_RECALL: recall(proxy.amax(1), result.delta, first, top),
        }
        scale = Scale(fitted_scale(on, kl), fitted_scale(proxy, result.kl))
        return Truth(metrics, scatter(step, proxy, result.kl), scale)


class LossSource:
    """Which source is used: the configured one; `auto` uses proxies until a tick's Spearman correlation is under the floor.

    It is left for good: a proxy that was too weak once is not trusted again in the same run.
    """

    def __init__(self, configured: str, floor: float) -> None:
        self._configured, self._floor = configured, floor
        self.left_at: int | None = None

    @property
    def used(self) -> str:
        """`hf`, `proxy` or `blend`."""
        if self._configured != "auto":
            return self._configured
        return "proxy" if self.left_at is None else "hf"

    def observe(self, step: int, spearman: float) -> None:
        """A tick's correlation; one that is not a number proves nothing, which is too little."""
        if self._configured == "auto" and self.left_at is None and not (spearman >= self._floor):
            self.left_at = step
