"""What a memory does to prompts of one's own: ON accuracy with and without it, and the tail of what it does to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cedkv import ledger
from cedkv.api.memory import Memory, State, placed
from cedkv.core.errors import UserError
from cedkv.data.encode import encode_off
from cedkv.data.records import OffPrompt
from cedkv.data.tokens import encode_on
from cedkv.evaluate import answer_log_probs, choose_shortcut, probe_of, score_answers, stress
from cedkv.injection.trunk import Trunk
from cedkv.memory.state import States
from cedkv.memory.union import union
from cedkv.models.load import context_length
from cedkv.models.types import CausalLM, Tokenizer
from cedkv.release.measure import stress_metrics
from cedkv.tracking.record import StressRow
from cedkv.train.experiment import SHORTCUT_TOLERANCE
from cedkv.train.tables import stress_table

OnItem = tuple[State, str, str]
"""The state that should know, a prompt, and the answer that should follow it."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``metrics`` by their names in the log (shares, nats); ``off``: each OFF prompt, in order, under the state that moves it most.

    ``off_delta_p99_stress`` is of the largest KL(memory || bare model) over states, at the last token of the prompt.
    """

    metrics: Mapping[str, float]
    off: tuple[StressRow, ...]


def evaluate(
    memory: Memory,
    model: CausalLM,
    tokenizer: Tokenizer,
    *,
    on: Sequence[OnItem] = (),
    off: Sequence[str] = (),
    states: Sequence[State] | None = None,
    batch_rows: int = 256,
) -> Evaluation:
    """Measure a memory by whole forward passes of the model.

    Args:
        memory: made for this model.
        model: in evaluation mode.
        tokenizer: the model's.
        on: what is asked of which state. Answers are exact where every token is the likeliest one, given those before.
        off: prompts that no document of the memory answers. 299 or more give a bound on their p99.
        states: under which states OFF prompts are read; every document's alone by default. Several names in one: their union.
        batch_rows: rows of one forward pass.

    Raises:
        UserError: another model or tokenizer, an unknown state, a prompt without tokens or longer than the context.
    """
    memory.check(model, tokenizer)
    if not on and not off:
        raise UserError("evaluate() is given neither `on` nor `off` prompts: there is nothing to measure")
    measured = _Measured(memory, model, tokenizer, batch_rows)
    metrics = measured.on_metrics(on) if on else {}
    rows = measured.off_rows(off, memory.documents if states is None else states) if off else ()
    return Evaluation(metrics | (stress_metrics(rows) if rows else {}), rows)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A memory beside its model."""

    memory: Memory
    model: CausalLM
    tokenizer: Tokenizer
    batch_rows: int

    @torch.no_grad()
    def off_rows(self, off: Sequence[str], names: Sequence[State]) -> tuple[StressRow, ...]:
        """Every prompt under every state of ``names``."""
        sources = [OffPrompt(str(n), prompt, "off") for n, prompt in enumerate(off)]
        encoded = encode_off(self.tokenizer, sources, context_length(self.model.config))
        prompts, states = [row.prompt for row in encoded], self._states(names)
        shortcut, _ = choose_shortcut(self.model, states, probe_of(prompts), SHORTCUT_TOLERANCE)
        trunk = Trunk(self.model, prompts, states.layers[0], shortcut=shortcut, batch_rows=self.batch_rows)
        result = stress(self.model, states, trunk, batch_rows=self.batch_rows)
        return stress_table(sources, result, [" + ".join(_names(state)) for state in names], self.tokenizer)

    @torch.no_grad()
    def on_metrics(self, on: Sequence[OnItem]) -> dict[str, float]:
        """Exact match and answer log-probability, with the memory and without."""
        groups = list(dict.fromkeys(_names(state) for state, _, _ in on))
        rows = torch.tensor([groups.index(_names(state)) for state, _, _ in on], device=self.model.device)
        pairs = [encode_on(self.tokenizer, prompt, answer) for _, prompt, answer in on]
        prompts, answers = ([pair[side] for pair in pairs] for side in (0, 1))
        base = answer_log_probs(self.model, prompts, answers, batch_rows=self.batch_rows)
        with_memory = answer_log_probs(
            self.model, prompts, answers, batch_rows=self.batch_rows, states=self._states(groups), rows=rows
        )
        by_base, by_student = score_answers(base, answers), score_answers(with_memory, answers)
        count = len(on)
        return {
            ledger.ON_ACC_BASE: sum(by_base.correct) / count,
            ledger.ON_ACC_STUDENT: sum(by_student.correct) / count,
            ledger.ON_GAIN: (sum(by_student.correct) - sum(by_base.correct)) / count,
            ledger.ON_LOGP_GAIN: (sum(by_student.logp) - sum(by_base.logp)) / count,
        }

    def _states(self, names: Sequence[State]) -> States:
        """One state for each of ``names``, where the model is."""
        return placed(union(self.memory.states, [self.memory.group(name) for name in names]), self.model)


def _names(state: State) -> tuple[str, ...]:
    return (state,) if isinstance(state, str) else tuple(state)
