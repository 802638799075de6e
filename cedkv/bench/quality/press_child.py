"""Run by an interpreter that has kvpress: compress every document's cache, answer from it, write what came out.

    python -m cedkv.bench.quality.press_child FOLDER

`task.json` and `task.safetensors` in FOLDER say what to do (see `cedkv.bench.quality.pressed`); `done.json` and
`done.safetensors` are the answer. Nothing else is exchanged. Of cedkv only the KL is used, which is a function of tensors.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kvpress
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from cedkv.core.losses import kl_from_logits

DECODED, TURNS = 32, 21


class Compressed:
    """A model with the documents' caches, each compressed by a press to `keep` tokens in every global layer."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            task["model"], dtype=getattr(torch, task["dtype"])
        ).eval()
        self.model.requires_grad_(False)
        config = self.model.config
        types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        self.sliding = [kind == "sliding_attention" for kind in types]
        self.window = config.sliding_window if any(self.sliding) else 0
        self.documents = [tuple(ids) for ids in task["documents"]]
        self.skipped, self.keep, self.press = task["skipped"], task["keep"], task["press"]
        started = time.perf_counter()
        self.caches = [self.compressed(ids) for ids in self.documents]
        self.seconds = time.perf_counter() - started

    def compressed(self, ids: tuple[int, ...]) -> DynamicCache:
        """The cache of one document; layers with a sliding window keep what their window holds."""
        ratio = 1.0 - (self.keep + 0.5) / len(ids)
        # Of sinks that are kept whatever they say, no more than a quarter of so small a budget.
        settings = {"n_sink": max(1, self.keep // 4)} if self.press == "ExpectedAttentionPress" else {}
        press = getattr(kvpress, self.press)(compression_ratio=ratio, **settings)
        cache = DynamicCache(config=self.model.config)
        inner = self.model.model
        with ExitStack() as stack:
            if any(self.sliding):
                # kvpress knows Gemma 3 with images only, and leaves its sliding layers alone; the same for the text model.
                for layer, sliding in zip(inner.layers, self.sliding, strict=True):
                    if not sliding:
                        attention = layer.self_attn
                        attention.__dict__["rotary_emb"] = lambda x, at: inner.rotary_emb(
                            x, at, "full_attention"
                        )
                        handle = attention.register_forward_hook(press.forward_hook, with_kwargs=True)
                        stack.callback(handle.remove)
            else:
                stack.enter_context(press(self.model))
            inner(input_ids=torch.tensor([ids]), past_key_values=cache)
        lengths = [keys.shape[2] for keys, _ in stored(cache)]
        assert all(s or n == self.keep for n, s in zip(lengths, self.sliding, strict=True)), lengths
        return cache

    @property
    def bytes(self) -> int:
        """Of the largest cache."""
        return max(
            sum(x.numel() * x.element_size() for pair in stored(cache) for x in pair) for cache in self.caches
        )

    def logits(self, n: int, ids: Tensor, keep: int) -> Tensor:
        """[P, keep, V] behind bare prompts [P, T], read behind document `n` from its compressed cache."""
        shown = ids[:, self.skipped :]
        own = copy.deepcopy(self.caches[n])  # a pass writes to its cache
        own.batch_repeat_interleave(len(ids))
        return self.step(own, shown, len(self.documents[n]), keep)

    def step(self, cache: DynamicCache, ids: Tensor, start: int, keep: int) -> Tensor:
        """Logits [P, keep, V] of a pass that goes on from `cache` at position `start`."""
        at = torch.arange(start, start + ids.shape[1])
        masks = {"attention_mask": self._masks(cache, ids.shape[1])} if any(self.sliding) else {}
        found = self.model(
            input_ids=ids, position_ids=at[None], past_key_values=cache, logits_to_keep=keep, **masks
        )
        return found.logits[:, -keep:]

    def _masks(self, cache: DynamicCache, length: int) -> dict[str, Tensor]:
        """Of both kinds of layers: transformers would derive the global ones' from the length of a sliding one."""
        pairs = list(zip(stored(cache), self.sliding, strict=True))
        kept = {s: next(x.shape[2] for (x, _), sliding in pairs if sliding is s) for s in (True, False)}
        query = torch.arange(length)[:, None]
        own = torch.arange(length)[None] <= query
        near = query - torch.arange(-kept[True], length)[None] < self.window
        before = torch.ones(length, kept[True], dtype=torch.bool)
        return {
            "full_attention": torch.cat([torch.ones(length, kept[False], dtype=torch.bool), own], 1)[
                None, None
            ],
            "sliding_attention": (torch.cat([before, own], 1) & near)[None, None],
        }


def stored(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def by_length(prompts: list[list[int]], rows: int) -> list[list[int]]:
    """Places of prompts of one length, at most `rows` together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        groups[len(prompt)].append(place)
    return [g[i : i + rows] for _, g in sorted(groups.items()) for i in range(0, len(g), rows)]


def on_answers(run: Compressed, task: dict[str, Any]) -> Tensor:
    """Log-probabilities [ΣA, V] at all answer tokens, prompt after prompt."""
    found = []
    for row in task["on"]:
        ids = torch.tensor([row["prompt"] + row["answer"][:-1]])
        found.append(run.logits(row["document"], ids, len(row["answer"]))[0].float().log_softmax(-1))
    return torch.cat(found)


def off_drift(run: Compressed, task: dict[str, Any], base: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || base) [U, N] and the student's first choice."""
    prompts, count = task["stress"], len(run.documents)
    kl, top = torch.zeros(len(prompts), count), torch.zeros(len(prompts), count, dtype=torch.long)
    for places in by_length(prompts, task["rows"]):
        ids = torch.tensor([prompts[i] for i in places])
        for n in range(count):
            logits = run.logits(n, ids, 1)
            found, said = kl_from_logits(logits.view(1, 1, *base[places].shape), base[places][None])
            kl[places, n], top[places, n] = found[0, 0].float(), said[0, 0]
    return kl, top


def overhead(run: Compressed, prompt: list[int]) -> list[float]:
    """Seconds of decoding from the compressed cache over seconds without it, turn by turn."""
    ids = torch.tensor([prompt])

    def decode(step: Callable[[Tensor, int], Tensor]) -> float:
        token, at = step(ids, 0).argmax(-1), len(prompt)
        started = time.perf_counter()
        for n in range(DECODED):
            token = step(token, at + n).argmax(-1)
        return time.perf_counter() - started

    def bare() -> float:
        cache = DynamicCache(config=run.model.config)
        return decode(lambda ids, _: run.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits)

    def behind() -> float:
        cache, start = copy.deepcopy(run.caches[0]), len(run.documents[0])
        return decode(lambda ids, at: run.step(cache, ids, start + at, 1))

    turns = [(bare(), behind()) for _ in range(TURNS + 1)][1:]
    return [own / other for other, own in turns]


@torch.no_grad()
def main(folder: Path) -> None:
    """Do the task in `folder`."""
    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    base = load_file(folder / "task.safetensors")["base"]
    run = Compressed(task)
    probe = by_length(task["stress"], 8)[0]
    plain = run.model(input_ids=torch.tensor([task["stress"][i] for i in probe]), logits_to_keep=1).logits[
        :, -1
    ]
    apart = (plain.float().softmax(-1) - base[probe].exp()).abs().sum(-1).max().item()
    kl, top = off_drift(run, task, base)
    save_file({"on": on_answers(run, task), "kl": kl, "top": top}, folder / "done.safetensors")
    done = {
        "seconds": run.seconds,
        "bytes": run.bytes,
        "apart": apart,
        "overhead": overhead(run, task["stress"][probe[0]]),
        "sliding": sum(run.sliding),
        "versions": {name: version(name) for name in ("kvpress", "transformers", "torch")},
    }
    (folder / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
