"""peft's adapters, all documents of one at once: the parameters of N adapters side by side, and passes under any of them.

Adam works entry by entry, and the loss is a sum over documents: training N adapters together is training each alone.
`cedkv.bench.quality.identity` holds them to peft itself: loss, gradient and KL.

Shapes: N documents, R rows, T tokens, S slots, L layers, G kv heads, D head size, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cedkv.bench import peers
from cedkv.core.errors import UserError
from cedkv.injection import inject
from cedkv.memory.state import States
from cedkv.models.layers import attention_modules, in_one_piece
from cedkv.models.types import CausalLM

SCALE = 1.0
"""LoRA's alpha / r; the learning rate is searched, so that another factor would be another rate."""


class Adapters(nn.Module):
    """What all documents learn: parameters with N in front, and the passes under them."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self._frozen = (model,)  # in a tuple, so that its weights are no parameters here

    @property
    def _model(self) -> CausalLM:
        return self._frozen[0]

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        """As `Attached` has it; differentiable in the parameters."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Stored per document."""
        return sum(p[0].numel() * p.element_size() for p in self.parameters())


class Slots(Adapters):
    """Prefix tuning and cartridges: S keys and values in every layer at positions 0 to S, prompts behind them.

    `table` [N, S, L · 2 · G · D] is in peft's own order.
    """

    def __init__(self, model: CausalLM, table: Tensor) -> None:
        super().__init__(model)
        self.table = nn.Parameter(table)
        self._layers = tuple(layer.index for layer in attention_modules(model).values())

    @property
    def states(self) -> States:
        """What is injected: slots right before the prompt."""
        heads, size = kv_shape(self._model)
        split = self.table.unflatten(2, (len(self._layers), 2, heads, size)).permute(2, 3, 0, 4, 1, 5)
        keys, values = ({i: split[n, part] for n, i in enumerate(self._layers)} for part in (0, 1))
        return States(keys, values, torch.arange(-self.table.shape[1], 0, device=self.table.device))

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        """By injection at all layers, positions shifted: what peft's cache gives."""
        positions = peers.shifted(ids, self.table.shape[1])
        with inject(self._model, self.states, rows), in_one_piece(self._model):
            found = self._model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep
            ).logits
        return found[:, -keep:]


class LowRank(Adapters):
    """LoRA on peft's own choice of projections for the family: of each A [N, r, in] and B [N, out, r]."""

    def __init__(self, model: CausalLM, documents: int, rank: int, generator: torch.Generator) -> None:
        super().__init__(model)
        self.targets = lora_targets(model)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for _, linear in self.targets:
            # As peft starts: A as a linear layer's weights, B zero.
            down = torch.empty(documents, rank, linear.in_features)
            bound = 1 / math.sqrt(linear.in_features)
            self.down.append(nn.Parameter(down.uniform_(-bound, bound, generator=generator)))
            self.up.append(nn.Parameter(torch.zeros(documents, linear.out_features, rank)))
        self.to(device=model.device, dtype=model.dtype)

    @contextmanager
    def attached(self, rows: Tensor) -> Iterator[None]:
        """Within the block each row of a pass goes through its document's adapter."""
        with ExitStack() as stack:
            for (_, linear), down, up in zip(self.targets, self.down, self.up, strict=True):

                def add(
                    _: nn.Module,
                    inputs: tuple[Tensor, ...],
                    output: Tensor,
                    down: Tensor = down,
                    up: Tensor = up,
                ) -> Tensor:
                    return output + SCALE * (inputs[0] @ down[rows].mT) @ up[rows].mT

                stack.callback(linear.register_forward_hook(add).remove)
            yield

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        """By whole passes."""
        with self.attached(rows), in_one_piece(self._model):
            found = self._model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        return found[:, -keep:]


def kv_shape(model: CausalLM) -> tuple[int, int]:
    """Number of kv heads, and head size, the same in every layer, as peft takes them to be."""
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", heads), size


def slots_for(model: CausalLM, budget: int) -> int:
    """The fewest slots in every layer that take at least `budget` bytes."""
    heads, size = kv_shape(model)
    return -(-budget // (len(attention_modules(model)) * 2 * heads * size * model.dtype.itemsize))


def rank_for(model: CausalLM, budget: int) -> int:
    """LoRA's smallest rank whose factors take at least `budget` bytes."""
    per_rank = sum(linear.in_features + linear.out_features for _, linear in lora_targets(model))
    return -(-budget // (per_rank * model.dtype.itemsize))


def lora_targets(model: CausalLM) -> list[tuple[str, nn.Linear]]:
    """The projections that peft adapts in this family where nobody says which.

    Raises:
        UserError: a family for which peft has no choice of its own.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICE

    family = model.config.model_type
    wanted = CHOICE.get(family, ())
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in wanted and isinstance(module, nn.Linear)
    ]
    if not found:
        raise UserError(
            f"peft names no LoRA targets for the family {family!r}: leave lora and lora_off out of --only"
        )
    return found


def random_prefix(model: CausalLM, documents: int, slots: int, generator: torch.Generator) -> Slots:
    """As peft starts a prefix: an embedding, normal with standard deviation 1."""
    heads, size = kv_shape(model)
    width = len(attention_modules(model)) * 2 * heads * size
    table = torch.randn(documents, slots, width, generator=generator)
    return Slots(model, table.to(device=model.device, dtype=model.dtype))


@torch.no_grad()
def first_tokens(model: CausalLM, documents: list[tuple[int, ...]], slots: int) -> Slots:
    """As peft starts a cartridge: the cache of the document's first tokens, by its own helper.

    The helper reads the whole text; in layers with a sliding window the cache then holds the last tokens, at other
    positions than it takes them for. So it is given the first `slots` tokens: elsewhere that is the same.
    """
    from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values

    rows = []
    for ids in documents:
        read = torch.tensor([ids[:slots]], device=model.device)
        cache = model(input_ids=read, use_cache=True, logits_to_keep=1).past_key_values
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        rows.append(prompt_embeddings_from_past_key_values(layers, num_virtual_tokens=slots))
    return Slots(model, torch.stack(rows))
