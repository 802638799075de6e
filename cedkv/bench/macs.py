"""How many multiply-adds the prompts of a pass need under a state once everything below the first injected layer is known.

Read from the modules themselves: the shapes of their weights, and of the slots. With T positions (what prompts share is
counted once), n of them asked for (the last ones of the prompts), S slots, H query heads, D and D' the sizes of keys and
values, and |W| the number of entries of a weight:

    first injected layer    T (|W_o| + |W_mlp|) + T S H (D + D')            its queries are known, its slots merged
    layers between          T (|W_q| + |W_k| + |W_v| + |W_o| + |W_mlp|) + (V_T + T S) H (D + D')
    last layer              T (|W_k| + |W_v|) + n (|W_q| + |W_o| + |W_mlp|) + (V_n + n S) H (D + D')
    output head             n |W_head|

V_T counts the (query, key) pairs that causality and a sliding window leave, V_n those of the n queries. Where the first
injected layer is also the last, T is n in its line. Norms, activations, softmaxes and biases are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cedkv.core.errors import UserError
from cedkv.memory.state import States
from cedkv.models.layers import AttentionLayer, attention_modules, decoder_layers
from cedkv.models.types import CausalLM

QUERY = ("q_proj",)
KEY_VALUE = ("k_proj", "v_proj")
FUSED = ("qkv_proj", "query_key_value", "c_attn")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj")


@dataclass(frozen=True, slots=True)
class Product:
    """`positions` rows of every state times a weight [out, in]."""

    name: str
    weight: Tensor
    positions: int

    @property
    def macs(self) -> int:
        """Multiply-adds under one state."""
        return self.positions * self.weight.numel()


@dataclass(frozen=True, slots=True)
class Work:
    """The products with weights, and the multiply-adds of attention, under one state."""

    products: tuple[Product, ...]
    attention: int

    @property
    def linear(self) -> int:
        """Multiply-adds with weights."""
        return sum(product.macs for product in self.products)

    @property
    def macs(self) -> int:
        """All of them."""
        return self.linear + self.attention


@dataclass(frozen=True, slots=True)
class Projections:
    """The weights [out, in] of one decoder layer by their part in it; `fused`: query, key and value are one module."""

    query: Tensor
    key_value: tuple[Tensor, ...]
    output: Tensor
    mlp: tuple[Tensor, ...]
    fused: bool

    def all_of(self, positions: int) -> list[Product]:
        """The whole layer at `positions`."""
        return [*self.asking(positions), *self.answering(positions)]

    def answering(self, positions: int) -> list[Product]:
        """Keys and values."""
        return [Product("key, value", weight, positions) for weight in self.key_value]

    def asking(self, positions: int) -> list[Product]:
        """Queries, and everything behind the attention."""
        return [Product("query", self.query, positions), *self.behind(positions)]

    def behind(self, positions: int) -> list[Product]:
        """Output projection and MLP."""
        return [
            Product("output", self.output, positions),
            *(Product("mlp", weight, positions) for weight in self.mlp),
        ]


@dataclass(frozen=True, slots=True)
class Asked:
    """The positions of a pass: how many each one has before it, and the same of those whose answer is asked for."""

    depths: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def prompt(cls, length: int, keep: int = 1) -> Asked:
        """One prompt, asked at its last `keep` positions."""
        return cls(tuple(range(length)), tuple(range(length - keep, length)))


def needed(model: CausalLM, states: States, asked: Asked) -> Work:
    """What the prompts of a pass need under one state, from the first injected layer on; the formula stands above.

    Args:
        states: what is injected, from its first layer to the model's last.

    Raises:
        UserError: a layer whose products cannot be told apart (experts, unknown projections).
    """
    first, last = states.layers[0], len(decoder_layers(model)) - 1
    products: list[Product] = []
    attention = 0
    for layer in (layer for layer in attention_modules(model).values() if layer.index >= first):
        parts = projections(model, layer.index, states)
        queries = asked.ends if layer.index == last else asked.depths
        if layer.index == first:
            products += parts.behind(len(queries))
            attention += len(queries) * states.slots * _width(states, parts)
            continue
        products += parts.answering(len(asked.depths)) + parts.asking(len(queries))
        attention += _attention(states, parts, layer, queries)
    return Work((*products, _head(model, len(asked.ends))), attention)


def whole(model: CausalLM, states: States, length: int, keep: int = 1) -> Work:
    """A plain pass over one prompt: every layer, every position, and the output head at the last `keep`."""
    products: list[Product] = []
    attention = 0
    for layer in attention_modules(model).values():
        parts = projections(model, layer.index, states)
        products += parts.all_of(length)
        attention += _attention(states, parts, layer, range(length))
    return Work((*products, _head(model, keep)), attention)


def visible(depths: Iterable[int], window: int | None) -> int:
    """(query, key) pairs of queries at these depths that no mask hides.

    >>> visible(range(4), None), visible(range(4), 2), visible([3], None)
    (10, 7, 4)
    """
    return sum(min(depth + 1, window or depth + 1) for depth in depths)


def projections(model: CausalLM, index: int, states: States) -> Projections:
    """The weights of the decoder layer `index`, told apart by name and shape."""
    layer = decoder_layers(model)[index]
    attention = next(module for module, found in attention_modules(model).items() if found.index == index)
    inside = _weights(attention)
    mlp = [weight for name, weight in _weights(layer).items() if not _below(layer, attention, name)]
    known = sum(weight.numel() for weight in (*inside.values(), *mlp))
    if known != sum(p.numel() for p in layer.parameters() if p.ndim > 1):
        raise UserError(
            f"layer {index} of model family {model.config.model_type!r} has weights that are no plain linear map, "
            "whose products cannot be counted: name another model"
        )
    output = _one(inside, OUTPUT, model)
    fused = next((inside[name] for name in FUSED if name in inside), None)
    if fused is None:
        query, pair = _one(inside, QUERY, model), tuple(_one(inside, (name,), model) for name in KEY_VALUE)
        return Projections(query, pair, output, tuple(mlp), fused=False)
    # Which rows of a fused weight belong to keys and values differs between families; how many there are does not.
    both = _heads_wide(states)
    query, key_value = fused[:-both], fused[-both:]
    return Projections(query, (key_value,), output, tuple(mlp), fused=True)


def _attention(states: States, parts: Projections, layer: AttentionLayer, queries: Sequence[int]) -> int:
    """Of queries at these depths."""
    slots = states.slots if layer.index in states.keys else 0
    return (visible(queries, layer.window) + len(queries) * slots) * _width(states, parts)


def _width(states: States, parts: Projections) -> int:
    """H (D + D'): multiply-adds of one query with one key and its value."""
    key, value = next(iter(states.keys.values())), next(iter(states.values.values()))
    heads = parts.query.shape[0] // key.shape[-1]
    return heads * (key.shape[-1] + value.shape[-1])


def _heads_wide(states: States) -> int:
    key, value = next(iter(states.keys.values())), next(iter(states.values.values()))
    return key.shape[1] * (key.shape[-1] + value.shape[-1])


def _head(model: CausalLM, keep: int) -> Product:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), "a causal LM ends in a linear map"
    return Product("head", head.weight, keep)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights [out, in] of the linear maps below `module`, by name. GPT-2's Conv1D is one, transposed."""
    found = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            found[name] = child.weight
        elif type(child).__name__ == "Conv1D":
            weight: Tensor = child.weight
            found[name] = weight.t()
    return found


def _below(layer: nn.Module, attention: nn.Module, name: str) -> bool:
    wanted = layer.get_submodule(name)
    return any(module is wanted for module in attention.modules())


def _one(inside: dict[str, Tensor], names: Sequence[str], model: CausalLM) -> Tensor:
    for name in names:
        if name in inside:
            return inside[name]
    raise UserError(
        f"the attention of model family {model.config.model_type!r} has projections {sorted(inside)}, but none of "
        f"{', '.join(names)}, so its products cannot be counted: name another model"
    )
