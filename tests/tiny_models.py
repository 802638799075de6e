"""Small random models of many families, and memories for them: a plugin, so that every test folder may use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cedkv.memory.atoms import Atoms
    from cedkv.memory.bank import MemoryBank
    from cedkv.memory.state import States
    from cedkv.memory.warm_start import AnchorShare

_WIDE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # attention that matters: at 0.02 it is all but uniform
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_LOCAL = {"sliding_window": 6, "num_hidden_layers": 4}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _HEADS,
    "gemma2": _HEADS | _LOCAL | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": _HEADS
    | _LOCAL
    | {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2},
    "mistral": _GROUPED | _LOCAL,
    "gpt_neox": _WIDE,
    "gpt2": _WIDE,
    "phi": _GROUPED,
    "olmo2": _GROUPED,
    "exaone4": _GROUPED | _LOCAL,  # its global layers carry the number of the window, too
    "gpt_oss": _HEADS
    | _LOCAL
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default"}},
    "deepseek_v3": _WIDE
    | {"num_key_value_heads": 4, "first_k_dense_replace": 3, "kv_lora_rank": 16, "q_lora_rank": 16}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 4, "v_head_dim": 8},  # keys longer than values
}
MATRIX = tuple(_FAMILIES)


class TinyModels:
    """Frozen float32 models with random weights, and things to feed them."""

    def __init__(self) -> None:
        self._made: dict[str, PreTrainedModel] = {}

    def __call__(self, family: str) -> PreTrainedModel:
        """The family's model, made once per session: leave it as it was."""
        if family not in self._made:
            self._made[family] = self.fresh(family)
        return self._made[family]

    @staticmethod
    def fresh(family: str, **changes: Any) -> PreTrainedModel:
        """A model of the test's own. Families outside the matrix need all of their configuration in `changes`."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(family, **_FAMILIES.get(family, {}) | changes)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @staticmethod
    def tokens(*shape: int, seed: int = 0) -> Tensor:
        """Random token ids without special ones."""
        import torch

        return torch.randint(3, 67, shape, generator=torch.Generator().manual_seed(seed))

    def memory(
        self, model: PreTrainedModel, states: int = 1, slots: int = 3, *, layers: Sequence[int] | None = None
    ) -> States:
        """Slots taken from random documents, at `layers` (all by default)."""
        import torch

        from cedkv.injection import capture
        from cedkv.memory.state import States

        parts = []
        for n in range(states):
            ids = tuple(self.tokens(16, seed=100 + n).tolist())
            atoms = capture(model, f"d{n}", ids, ("content",) * 16)
            pick = torch.randperm(16, generator=torch.Generator().manual_seed(n))[:slots]
            chosen = list(atoms.keys) if layers is None else layers
            keys = {i: atoms.keys[i][None, :, pick] for i in chosen}
            parts.append(States(keys, {i: atoms.values[i][None, :, pick] for i in chosen}))
        return States.stack(parts)

    def atoms(self, model: PreTrainedModel, documents: int = 3, tokens: int = 18) -> list[Atoms]:
        """Random documents that begin with a special token, every fourth token a delimiter."""
        from cedkv.injection import capture

        types = (None, *("delimiter" if i % 4 == 0 else "content" for i in range(1, tokens)))
        return [
            capture(model, f"d{n}", tuple(self.tokens(tokens, seed=200 + n).tolist()), types)
            for n in range(documents)
        ]

    def bank(
        self,
        model: PreTrainedModel,
        *,
        documents: int = 3,
        slots: int = 3,
        pool: int = 8,
        anchors: AnchorShare = "shared",
        **changes: Any,
    ) -> MemoryBank:
        """A bank over the top two layers whose slots were planned from random attention."""
        import torch

        from cedkv.memory.bank import MemoryBank, MixSpec
        from cedkv.memory.warm_start import plan_slots

        top = tuple(range(model.config.num_hidden_layers))[-2:]
        settings = {"mode": "v_only", "share": "shared", "mixture": top, "injection": top}
        settings |= {"sink_slots": 0, "mass_cap": 0.15, "mass_penalty": 0.05}
        spec = MixSpec(**settings | changes)
        atoms, plans = self.atoms(model, documents), []
        heads = next(iter(atoms[0].keys.values())).shape[0] if anchors == "head" else 1
        for n, document in enumerate(atoms):
            generator = torch.Generator().manual_seed(n)
            on, off = (
                torch.rand(len(spec.injection), heads, prompts, len(document.types), generator=generator)
                for prompts in (6, 4)
            )
            plans.append(
                plan_slots(
                    document.document,
                    document.types,
                    on,
                    off,
                    slots=slots,
                    pool_size=pool,
                    atom_types=("content", "delimiter"),
                    anti_steer_strength=0.2,
                    share=anchors,
                )
            )
        return MemoryBank(atoms, plans, spec)


@pytest.fixture(scope="session")
def tiny() -> TinyModels:
    return TinyModels()


@pytest.fixture(scope="session", params=MATRIX)
def family(request: pytest.FixtureRequest) -> str:
    """Each family of the matrix in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(tiny: TinyModels, family: str) -> PreTrainedModel:
    """The shared model of each family in turn: leave it as it was."""
    return tiny(family)
