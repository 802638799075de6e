"""The bank: every document's anchors and candidates, and the mixture logits that are trained.

Shapes: N documents (= states), H kv heads, S slots, J candidates, D head size, X sink slots. Logits are
[N, Lw, Hw, S, J] with Lw, Hw = 1 where weights are shared over layers or heads (`mix.share`), candidates [N, Lc, Hc, S, J]
where those have their own anchors (`mix.k_anchor.share`).

`V_s = Σ_j p_sj V_j + δ_s`, where values have a residual δ (`mix.value_residual`), learned per slot, layer and kv head, from 0
on: what a slot says may then leave what the document's atoms say. Keys, which decide when it is heard, stay those of anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cedkv.core.errors import UserError
from cedkv.core.losses import pairwise_slot_overlap, slot_entropy
from cedkv.ledger import ATOM_TYPES
from cedkv.memory.atoms import Atoms
from cedkv.memory.delimiter import mass_penalty
from cedkv.memory.gate import SlotGate
from cedkv.memory.mixture import Mixture, mix
from cedkv.memory.state import States
from cedkv.memory.warm_start import SlotPlan

MixMode = Literal["anchor", "v_only", "kv"]
Share = Literal["shared", "layer", "head"]
PADDING = -1
DELIMITER = ATOM_TYPES.index("delimiter")


@dataclass(frozen=True, slots=True)
class MixSpec:
    """How slots are made from atoms; the configuration's `layer_scope`, `mix`, `memory` and `candidate` in plain values."""

    mode: MixMode
    share: Share
    mixture: tuple[int, ...]
    injection: tuple[int, ...]
    sink_slots: int
    mass_cap: float
    mass_penalty: float
    value_residual: bool = False


@dataclass(frozen=True, slots=True)
class Structure:
    """What `L_str` sums, each a scalar: mean slot entropy (nats), mean pairwise overlap, delimiter penalty."""

    entropy: Tensor
    overlap: Tensor
    penalty: Tensor

    @property
    def loss(self) -> Tensor:
        """`L_str`."""
        return self.entropy + self.overlap + self.penalty


class MemoryBank(nn.Module):
    """Slots of N documents. Mixture logits are its parameters, with a gate's and residuals where there are any.

    The rest is constant.

    Raises:
        ValueError: a mixture layer that is not injected; a document with fewer tokens than sink slots.
    """

    anchors: Tensor  # [N, A, H, S], A injected layers or 1: positions in the document
    candidates: Tensor  # [N, Lc, Hc, S, J]
    candidate_types: Tensor  # of the same shape: places in `ATOM_TYPES`, or `PADDING`

    gate: SlotGate | None

    def __init__(self, atoms: list[Atoms], plans: list[SlotPlan], spec: MixSpec) -> None:
        super().__init__()
        missing = set(spec.mixture) - set(spec.injection)
        if missing:
            raise ValueError(
                f"layer_scope.mixture holds layers {sorted(missing)} that layer_scope.injection does not inject"
            )
        short = min(atoms, key=lambda a: len(a.types))
        if len(short.types) < spec.sink_slots:
            raise UserError(
                f"document {short.document!r} has {len(short.types)} tokens for phase3.memory.sink_slots = "
                f"{spec.sink_slots}: lower it or give a longer document"
            )
        self.spec, self.gate = spec, None  # a gate is set once the bank's anchors are known
        self.documents = tuple(a.document for a in atoms)
        self.anchor_layers = tuple(tuple(spec.injection[i] for i in p.layers.tolist()) for p in plans)
        self.register_buffer("anchors", torch.stack([p.anchors for p in plans]))
        mixed = [spec.injection.index(layer) for layer in spec.mixture]

        def pools(name: str) -> Tensor:
            whole = torch.stack([getattr(p, name) for p in plans])
            return whole[:, mixed] if whole.shape[1] > 1 else whole

        self.register_buffer("candidates", pools("candidates"))
        types = [torch.tensor([ATOM_TYPES.index(t) if t else PADDING for t in a.types]) for a in atoms]
        found = [t.to(c.device)[c.clamp_min(0)] for t, c in zip(types, self.candidates, strict=True)]
        self.register_buffer(
            "candidate_types",
            torch.stack(found).masked_fill(self.candidates == PADDING, PADDING).to(torch.int8),
        )
        layers = len(spec.mixture) if spec.share != "shared" else 1
        heads = next(iter(atoms[0].keys.values())).shape[0] if spec.share == "head" else 1
        prior = pools("prior").log().masked_fill(self.candidates == PADDING, -torch.inf)
        if prior.shape[1] > layers or prior.shape[2] > heads:
            raise ValueError(
                f"mix.share {spec.share!r} has one mixture where there are several anchors to mix for"
            )
        self.logits = nn.Parameter(prior.expand(-1, layers, heads, -1, -1).clone())
        for layer in spec.injection:
            self._gather(layer, atoms, plans)
        # By layer: families may have layers with heads of other numbers and sizes. What is learned is learned in float32.
        self.residuals = nn.ParameterDict(
            {str(layer): _zeros_like(getattr(self, f"anchor_values_{layer}")) for layer in spec.mixture}
            if spec.value_residual
            else {}
        )

    def _gather(self, layer: int, atoms: list[Atoms], plans: list[SlotPlan]) -> None:
        """Constants of one layer: anchor keys and values, sinks, and candidate values (and keys for mode `kv`)."""
        place = self.spec.injection.index(layer)
        own = [(_at(p.anchors, place), _at(p.candidates, place).clamp_min(0)) for p in plans]
        for name in ("keys", "values"):
            source = [getattr(a, name)[layer] for a in atoms]
            anchors = [_picked(x, anchor) for x, (anchor, _) in zip(source, own, strict=True)]
            self._constant(f"anchor_{name}_{layer}", anchors)
            self._constant(f"sink_{name}_{layer}", [x[:, : self.spec.sink_slots] for x in source])
            mixed = name == "values" or self.spec.mode == "kv"
            if mixed and layer in self.spec.mixture and self.spec.mode != "anchor":
                pools = [_picked(x, candidates) for x, (_, candidates) in zip(source, own, strict=True)]
                self._constant(f"pool_{name}_{layer}", pools)

    def _constant(self, name: str, parts: list[Tensor]) -> None:
        self.register_buffer(name, torch.stack(parts).detach())

    @property
    def is_delimiter(self) -> Tensor:
        """[N, Lc, Hc, S, J] bool."""
        return self.candidate_types == DELIMITER

    def mixture(self, k: int, rows: Tensor | None = None) -> Mixture:
        """Mixture of the documents `rows` (all by default): weights [R, Lw, Hw, S, J]."""
        logits = self.logits if rows is None else self.logits[rows]
        flags = self.is_delimiter if rows is None else self.is_delimiter[rows]
        return mix(logits, k, flags, self.spec.mass_cap)

    def states(self, k: int, rows: Tensor | None = None) -> States:
        """The slots of the documents `rows` (all by default) with the mixture's k largest candidates."""
        keys, values = {}, {}
        weights = None if self.spec.mode == "anchor" else self.mixture(k, rows).weights
        for layer in self.spec.injection:
            keys[layer] = self._slots("keys", layer, weights, rows)
            values[layer] = self._slots("values", layer, weights, rows)
        return States(keys, values) if self.gate is None else self._gated(self.gate, keys, values, rows)

    def _gated(
        self,
        gate: SlotGate,
        keys: dict[int, Tensor],
        values: dict[int, Tensor],
        rows: Tensor | None,
    ) -> States:
        """Gains on the slots' keys, and their biases; sinks, which stand in front, stay as they are."""
        gains, biases = gate.resolved(rows)
        sinks, bias = self.spec.sink_slots, {}
        for place, layer in enumerate(self.spec.injection):
            gain = functional.pad(gains[:, place], (sinks, 0), value=1.0)
            keys[layer] = keys[layer] * gain[..., None].to(keys[layer].dtype)
            bias[layer] = functional.pad(biases[:, place], (sinks, 0))
        return States(keys, values, bias=bias)

    def _slots(self, name: str, layer: int, weights: Tensor | None, rows: Tensor | None) -> Tensor:
        """[R, H, S + X, D]: the sinks, then the slots, mixed where the mode and the layer say so."""

        def constant(prefix: str) -> Tensor:
            tensor = getattr(self, f"{prefix}_{name}_{layer}")
            return tensor if rows is None else tensor[rows]

        slots = constant("anchor")
        if weights is not None and hasattr(self, f"pool_{name}_{layer}"):
            per_layer = weights[:, self.spec.mixture.index(layer)] if weights.shape[1] > 1 else weights[:, 0]
            pool = constant("pool")
            per_head = per_layer.expand(-1, pool.shape[1], -1, -1).to(pool.dtype)
            slots = torch.einsum("nhsj,nhsjd->nhsd", per_head, pool)
        if name == "values" and str(layer) in self.residuals:
            residual = self.residuals[str(layer)]
            slots = slots + (residual if rows is None else residual[rows]).to(slots.dtype)
        return torch.cat([constant("sink"), slots], dim=2) if self.spec.sink_slots else slots

    def structure(self, k: int, rows: Tensor | None = None) -> Structure:
        """The parts of `L_str` for the documents `rows`."""
        mixture = self.mixture(k, rows)
        candidates = self.candidates if rows is None else self.candidates[rows]
        index = candidates.clamp_min(0).expand_as(mixture.weights)
        atoms = int(self.candidates.max()) + 1
        common = mixture.weights.new_zeros(*mixture.weights.shape[:-1], atoms).scatter_add(
            -1, index, mixture.weights
        )
        return Structure(
            slot_entropy(mixture.weights).mean(),
            pairwise_slot_overlap(common).mean(),
            self.spec.mass_penalty * mass_penalty(mixture.delimiter_mass, self.spec.mass_cap),
        )

    @torch.no_grad()
    def residual_share(self, k: int) -> float | None:
        """|δ| / (|δ| + |Σ p V|), the mean over slots, layers and heads; None without residuals."""
        if not self.residuals:
            return None
        values = self.states(k).values
        shares = []
        for layer, residual in self.residuals.items():
            mixed = values[int(layer)][:, :, self.spec.sink_slots :] - residual
            own = residual.norm(dim=-1)
            shares.append((own / (own + mixed.norm(dim=-1)).clamp_min(1e-30)).mean())
        return float(torch.stack(shares).mean())

    @torch.no_grad()
    def delimiter_mass(self, k: int) -> Tensor:
        """[N, S] delimiter mass of every slot after the cap, in the layer and head where it is largest; 0 in mode `anchor`."""
        mass = self.mixture(k).delimiter_mass.clamp_max(self.spec.mass_cap).amax((1, 2))
        return torch.zeros_like(mass) if self.spec.mode == "anchor" else mass

    @torch.no_grad()
    def type_mass(self, k: int) -> dict[str, Tensor]:
        """Mixture mass by atom type, [N, S] each, averaged over the axes of `mix.share`; in mode `anchor` all on anchors."""
        weights = self.mixture(k).weights
        if self.spec.mode == "anchor":
            weights = torch.zeros_like(weights)
            weights[..., 0] = 1.0
        kinds = self.candidate_types.unique().tolist()
        return {
            ATOM_TYPES[kind]: (weights * (self.candidate_types == kind)).sum(-1).mean((1, 2))
            for kind in kinds
            if kind != PADDING
        }


def _zeros_like(values: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(values, dtype=torch.promote_types(values.dtype, torch.float32)))


def _at(positions: Tensor, layer: int) -> Tensor:
    """[H, ...] of the layer numbered `layer` among those injected, of positions [A, H, ...]."""
    return positions[layer if positions.shape[0] > 1 else 0]


def _picked(source: Tensor, positions: Tensor) -> Tensor:
    """[G, ..., D] atoms of [G, T, D] at `positions` [H, ...], H one for each of the G heads, or 1."""
    heads = torch.arange(source.shape[0], device=source.device)
    return source[heads.view(-1, *[1] * (positions.ndim - 1)), positions]
