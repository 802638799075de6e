"""Is a model one that memories work in: what it is, what holds when slots are put into it, what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cedkv.bench.timing import interleaved, synchroniser
from cedkv.core.losses import kl_divergence
from cedkv.evaluate import choose_shortcut, stress
from cedkv.injection import capture, check_routed, inject, positions_behind
from cedkv.injection.trunk import Shortcut, Trunk, log_probs
from cedkv.memory.atoms import Atoms
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, resolve_scope, uses_rope
from cedkv.models.load import LoadedModel
from cedkv.train.experiment import SHORTCUT_TOLERANCE

SLOTS = 8
DOCUMENT, PROMPT, NEW = 48, 16, 24
"""Tokens of the random document, of a random prompt, and of a continuation."""
AGREES = 1e-4
"""Nats; in half precision what rounding makes of it is not held against a model."""
HALF_AGREES = 0.05
STATES, PROMPTS = 8, 16


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that has to hold of a model: whether it does, and what was measured."""

    name: str
    holds: bool
    told: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known of a model. Supported is one in which everything holds."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    costs: dict[str, Any]

    @property
    def supported(self) -> bool:
        """Whether memories work in it."""
        return all(finding.holds for finding in self.findings)


def diagnose(loaded: LoadedModel, scope: str = "top25") -> Diagnosis:
    """Look at a model, and try on random tokens what a memory relies on.

    Raises:
        UserError: slots cannot reach this model at all; it says why.
    """
    model = loaded.model
    layers = resolve_scope(scope, list(attention_modules(model).values()))
    check_routed(model, layers)
    patient = _Patient(loaded, layers)
    return Diagnosis(_facts(loaded, layers, scope), tuple(patient.findings()), patient.costs())


def _facts(loaded: LoadedModel, layers: tuple[int, ...], scope: str) -> dict[str, Any]:
    model = loaded.model
    found = list(attention_modules(model).values())
    windows = [layer.window for layer in found if layer.window is not None]
    local = f", {len(windows)} with a window of {windows[0]}" if windows else ""
    return {
        "family": model.config.model_type,
        "parameters": sum(x.numel() for x in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "context": loaded.context_length,
        "attention layers": f"{len(found)} of {model.config.get_text_config().num_hidden_layers}{local}",
        "positions": "rotary" if uses_rope(model) else "learned or none",
        f"slots go into ({scope})": list(layers),
        "fingerprint": loaded.fingerprint,
    }


class _Patient:
    """A model, a random document in it, and random prompts."""

    def __init__(self, loaded: LoadedModel, layers: tuple[int, ...]) -> None:
        self.loaded, self.model, self.layers = loaded, loaded.model, layers
        half = torch.finfo(self.model.dtype).bits < 32
        self.tolerance = HALF_AGREES if half else AGREES
        special = set(loaded.tokenizer.all_special_ids)
        plain = [
            i
            for i in range(min(len(loaded.tokenizer), self.model.config.get_text_config().vocab_size))
            if i not in special
        ]
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.tensor(plain)[torch.randint(len(plain), shape, generator=generator)].to(
                self.model.device
            )

        self.document, self.prompts = drawn(DOCUMENT), drawn(PROMPTS, PROMPT)
        self.atoms = [
            capture(self.model, str(n), tuple(ids.tolist()), ("content",) * len(ids))
            for n, ids in enumerate([self.document, *drawn(STATES - 1, DOCUMENT)])
        ]
        self.states = States.stack([self._slots(atoms) for atoms in self.atoms])

    def _slots(self, atoms: Atoms) -> States:
        """Evenly spread tokens of a document, at the chosen layers."""
        pick = torch.linspace(0, DOCUMENT - 1, SLOTS).long()
        keys, values = ({i: x[i][None, :, pick] for i in self.layers} for x in (atoms.keys, atoms.values))
        return States(keys, values)

    def findings(self) -> Iterator[Finding]:
        """What has to hold, one after the other."""
        yield from (self._empty(), self._reproduces(), self._generates(), self._learns())
        shortcut, error = choose_shortcut(
            self.model, self.states, [tuple(row) for row in self.prompts[:8].tolist()], SHORTCUT_TOLERANCE
        )
        self.shortcut = shortcut
        way = {Shortcut.PLAIN: "none agrees: whole passes, slower"}.get(
            shortcut, f"{shortcut.name.lower()}, within {error:.1e} nats"
        )
        yield Finding("shortcut of the stress evaluation", True, way)

    @torch.no_grad()
    def _logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        found: Tensor = self.model(input_ids=ids, use_cache=False, **inputs).logits
        return found

    def _empty(self) -> Finding:
        bare = self._logits(self.prompts)
        with inject(self.model, self.states.select(torch.tensor([0])).empty()):
            empty = self._logits(self.prompts)
        same = torch.equal(bare, empty) and torch.equal(self._logits(self.prompts), bare)
        return Finding(
            "an empty memory is the bare model", same, "bit for bit" if same else "the logits differ"
        )

    def _reproduces(self) -> Finding:
        prompt, whole = self.prompts[:1], self.atoms[0].as_states()
        read = self._logits(torch.cat([self.document[None], prompt], dim=1))[:, DOCUMENT:]
        with inject(self.model, whole):
            found = self._logits(prompt, position_ids=positions_behind(self.model, whole, PROMPT))
        error = _kl(read, found)
        return Finding(
            "the whole document injected is the document read",
            error <= self.tolerance,
            f"KL {error:.1e} nats, at most {self.tolerance:g}",
        )

    def _generates(self) -> Finding:
        rows = torch.tensor([1, 0], device=self.model.device)
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ids = self.prompts[:2]
        with inject(self.model, self.states, rows), torch.no_grad():
            cached = self.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]
            logits = self._logits(cached[:, :-1])[:, PROMPT - 1 :]
        # In half precision two ways to one near tie may part: what was chosen must be within rounding of the best.
        chosen = logits.gather(2, cached[:, PROMPT:, None])[..., 0]
        behind = (logits.amax(-1) - chosen).max().item()
        limit = 1e-3 if self.tolerance == AGREES else 0.5
        return Finding(
            "generating with a cache is generating without",
            behind <= limit,
            f"{behind:.1e} from the best logit",
        )

    def _learns(self) -> Finding:
        keys, values = (
            {i: x[:1].clone().requires_grad_() for i, x in part.items()}
            for part in (self.states.keys, self.states.values)
        )
        slots = [*keys.values(), *values.values()]
        with inject(self.model, States(keys, values)), torch.enable_grad():
            logits = self.model(input_ids=self.prompts[:2], use_cache=False).logits
            logits.float().log_softmax(-1)[:, -1, 0].sum().backward()
        reached = all(x.grad is not None and bool(x.grad.abs().sum() > 0) for x in slots)
        still = all(p.grad is None for p in self.model.parameters())
        return Finding(
            "gradients reach the slots, and nothing else",
            reached and still,
            "every layer" if reached else "not every layer",
        )

    def costs(self) -> dict[str, Any]:
        """Bytes, and seconds on this machine."""
        slot, whole = self.states.bytes_each // SLOTS, self.atoms[0].as_states().bytes_each
        bare, attached = self._generation()
        rate = self._pairs_per_second()
        return {
            "bytes of a slot": slot,
            f"bytes of a memory of {SLOTS} slots": slot * SLOTS,
            "bytes of a token of the context": whole // DOCUMENT,
            "ms a token, bare": bare * 1e3,
            "ms a token, with a memory": attached * 1e3,
            "overhead": attached / bare - 1,
            "stress pairs a second": rate,
            "seconds of an evaluation of 2048 prompts under 64 states": 2048 * 64 / rate,
        }

    def _generation(self) -> tuple[float, float]:
        """Seconds a token, bare and with a memory, in turns."""
        ids, one = self.prompts[:1], self.states.select(torch.tensor([0]))
        settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

        def generate(states: States | None) -> Callable[[], object]:
            def run() -> None:
                with inject(self.model, states), torch.no_grad():
                    self.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]

            return run

        times = interleaved(
            {"bare": generate(None), "memory": generate(one)}, 7, synchroniser(self.model.device)
        )
        return times["bare"].median / NEW, times["memory"].median / NEW

    def _pairs_per_second(self) -> float:
        prompts = [tuple(row) for row in self.prompts.tolist()]
        trunk = Trunk(self.model, prompts, self.states.layers[0], shortcut=self.shortcut)
        stress(self.model, self.states, trunk, batch_rows=256)
        started = time.perf_counter()
        stress(
            self.model, self.states, trunk, batch_rows=256
        )  # its result is on the CPU: it is over when it returns
        return PROMPTS * STATES / (time.perf_counter() - started)


def _kl(p: Tensor, q: Tensor) -> float:
    """The largest KL over positions, from logits."""
    return kl_divergence(log_probs(p), log_probs(q)).max().item()
