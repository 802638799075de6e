"""The recipe of the embedded model: packed rows, a curriculum, a cosine schedule, held-out scores.

A step trains on packed rows (see `packing`): random sequences said twice at first, then documents with questions.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

from cedkv.data import skills, world
from cedkv.models import tiny
from cedkv.models.load import load_model
from cedkv.models.types import CausalLM, Tokenizer
from cedkv.train.packing import Row, Segment, accuracy_by_kind, collate, logits_at, token_accuracy


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, besides the library versions and the number of threads."""

    seed: int = 3407
    steps: int = 1400
    threads: int = 1  # another number of threads rounds otherwise and ends in other weights
    tokens: int = 4600  # of one step, about
    lr: float = 3e-3
    warmup: int = 20
    # Random sequences said twice, short ones first: recall over a distance forms here within a few hundred steps.
    # The second copy starts behind the local layers' reach, whatever the length.
    repeat_start: int = 8
    repeat_stop: int = 96
    repeat_share: float = 0.03
    # Then documents; the most facts one may state rises whenever recall is good enough.
    first_level: int = 2
    last_level: int = 24
    rise_at: float = 0.9
    bare_every: int = 7
    prompt_weight: float = 0.05


class RowMaker:
    """Draws training rows; all randomness comes from the one generator it is given."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random, recipe: Recipe) -> None:
        self.rng, self.recipe = rng, recipe
        self.encode = tokenizer.backend_tokenizer.encode
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.first_word = 3 + 256
        self.vocab_size = len(tokenizer)

    def tokens(self, text: str) -> list[int]:
        """Ids of `text` without special tokens."""
        return self.encode(text, add_special_tokens=False).ids

    def segment(self, item: skills.Item, sees_document: bool) -> Segment:
        """A prompt behind a BOS and its answer before an EOS; where nothing has to follow, all of it is predicted."""
        prompt = [self.bos, *self.tokens(item.prompt)]
        answer = [*self.tokens(item.answer), self.eos] if item.answer else []
        loss_from = len(prompt) if answer else 1
        return Segment(prompt + answer, item.family, sees_document, loss_from)

    def repeat_row(self, length: int) -> Row:
        """A random sequence of about `length` tokens, said again beyond the local layers' reach."""
        size = self.rng.randint(length * 3 // 4, length)
        ids = [self.bos, *(self.rng.randrange(self.first_word, self.vocab_size) for _ in range(size))]
        return Row(ids, [Segment(ids, "repeat", True, 2)], gap=tiny.LOCAL_REACH)

    def repeat_rows(self, length: int) -> list[Row]:
        """As many as fill a step with about as many tokens as documents do."""
        return [self.repeat_row(length) for _ in range(self.recipe.tokens // (2 * length))]

    def document_row(self, level: int, cores: tuple[str, ...] = world.TRAIN_CORES) -> Row:
        """A document of up to `level` facts with questions about it and, from level 4 on, near misses and skills.

        Crowded documents come most: where every attribute occurs once, the entity would not be learned. Half of the
        rows keep the local layers from reading a fact that stands near the question.
        """
        rng = self.rng
        facts = world.draw_facts(rng, rng.randint(max(2, level // 3), level), crowded=rng.random() < 0.6)
        document = world.compose_document(rng, "", facts, rng.randint(0, len(facts) * 3 // 4))
        row = Row([self.bos, *self.tokens(document.text)], gap=rng.choice((0, tiny.LOCAL_REACH)))
        for fact in rng.sample(facts, min(12, len(facts))):
            row.segments.append(self._question(fact.pair, f" {fact.value}", "fact", cores))
        if level >= 4:
            absent = world.absent_pairs(rng, facts, {f.pair for f in facts})
            for pair in (next(absent) for _ in range(max(2, min(6, len(facts) // 2)))):
                row.segments.append(self._question(pair, world.UNKNOWN, "near_miss", cores))
            row.segments.append(self._question(facts[0].pair, world.UNKNOWN, "bare", cores))
        row.segments += self._skills(1 if level < 6 else 4, in_view=0.35)
        return row

    def _question(self, pair: tuple[str, str], answer: str, family: str, cores: tuple[str, ...]) -> Segment:
        item = skills.Item(world.question(self.rng, *pair, cores), answer, family)
        return self.segment(item, sees_document=family != "bare")

    def _skills(self, count: int, *, in_view: float) -> list[Segment]:
        """Skills, a share of them behind the document. Counting and sums are learned last, so they come most."""
        names = self.rng.choices(list(skills.SKILLS), weights=[5, 4, 1, 1, 1, 1, 1], k=count)
        return [
            self.segment(skills.SKILLS[name](self.rng), sees_document=self.rng.random() < in_view)
            for name in names
        ]

    def document_rows(self, level: int) -> list[Row]:
        """As many as fill a step; one in `bare_every` holds bare skills, as long as the document row before it.

        Longer ones would take the tokens from the documents, and every row is padded to the longest.
        """
        rows: list[Row] = []
        while sum(row.tokens for row in rows) < self.recipe.tokens:
            bare = len(rows) % self.recipe.bare_every == self.recipe.bare_every - 1
            rows.append(self._bare_row(rows[-1].tokens) if bare else self.document_row(level))
        return rows

    def _bare_row(self, length: int) -> Row:
        row = Row([self.bos])
        while row.tokens < length:
            row.segments += self._skills(1, in_view=0.0)
        return row


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    progress = min(1.0, step / recipe.steps)
    return (
        recipe.lr * min(1.0, (step + 1) / recipe.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
    )


def optimisers(model: CausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, Adam for the embedding and the norms."""
    blocks = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(blocks, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    recipe: Recipe,
    tokenizer: Tokenizer,
    report: Callable[[int, str, float, dict[str, float]], None],
    start: CausalLM | None = None,
) -> Iterator[tuple[int, CausalLM]]:
    """Train from scratch, or on from `start` with fresh optimisers.

    `report(step, kind of step, loss in nats, accuracy by kind)` is called after every step.
    """
    torch.manual_seed(recipe.seed)
    model = tiny.build_model(len(tokenizer)) if start is None else start.train().requires_grad_(True)
    maker = RowMaker(tokenizer, random.Random(recipe.seed), recipe)
    opts = optimisers(model)
    length, level, recall = float(recipe.repeat_start), recipe.first_level, 0.0
    for step in range(recipe.steps):
        repeating = length < recipe.repeat_stop or maker.rng.random() < recipe.repeat_share
        rows = maker.repeat_rows(round(length)) if repeating else maker.document_rows(level)
        batch = collate(rows, recipe.prompt_weight)
        logits = logits_at(model, batch)
        loss = (
            F.cross_entropy(logits, batch.target, reduction="none") * batch.weight
        ).sum() / batch.weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(recipe, step)
            opt.step()
            opt.zero_grad()
        if repeating and length < recipe.repeat_stop and token_accuracy(logits, batch) > 0.9:
            length = min(length * 1.15 + 1, recipe.repeat_stop)
        means = {k: sum(v) / len(v) for k, v in accuracy_by_kind(logits, batch).items()}
        if not repeating:
            recall = 0.9 * recall + 0.1 * means["fact"]
            if recall > recipe.rise_at and level < recipe.last_level:
                level, recall = level + 1, recall - 0.05
        report(step, f"repeat {round(length)}" if repeating else f"facts {level}", loss.item(), means)
        yield step, model


@torch.no_grad()
def score(
    model: CausalLM, maker: RowMaker, rows: int, *, facts: int, free: int, cores: tuple[str, ...]
) -> dict[str, float]:
    """Exact-match accuracy by kind on fresh documents of `facts` facts, asked in the phrasings `cores`."""
    rng = maker.rng
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(rows):
        stated = world.draw_facts(rng, facts)
        document = world.compose_document(rng, "", stated, free)
        row = Row([maker.bos, *maker.tokens(document.text)])
        for fact in stated:
            row.segments.append(
                maker.segment(
                    skills.Item(world.question(rng, *fact.pair, cores), f" {fact.value}", "fact"), True
                )
            )
            row.segments.append(
                maker.segment(
                    skills.Item(world.question(rng, *fact.pair, cores), world.UNKNOWN, "bare"), False
                )
            )
        absent = world.absent_pairs(rng, stated, {f.pair for f in stated})
        for pair in (next(absent) for _ in range(facts)):
            row.segments.append(
                maker.segment(
                    skills.Item(world.question(rng, *pair, cores), world.UNKNOWN, "near_miss"), True
                )
            )
        for name, skill in skills.SKILLS.items():
            row.segments += [maker.segment(skill(rng), False) for _ in range(2) if name != "story"]
        batch = collate([row], 0.0)
        for kind, oks in accuracy_by_kind(logits_at(model, batch), batch).items():
            found[kind] += oks
    return {kind: sum(oks) / len(oks) for kind, oks in sorted(found.items())}


def vocabulary_texts(seed: int, samples: int = 6000) -> Iterator[str]:
    """Enough of the world's text that every word of it occurs."""
    rng = random.Random(seed)
    for _ in range(samples):
        facts = world.draw_facts(rng, 8)
        yield world.compose_document(rng, "", facts, 6).text
        for fact in facts:
            yield world.question(rng, *fact.pair, world.TRAIN_CORES + world.EVAL_CORES)
            yield f" {fact.value}"
        for skill in skills.SKILLS.values():
            item = skill(rng)
            yield item.prompt
            yield item.answer
    yield world.UNKNOWN


HELD_OUT_DOCUMENTS = 64
"""Documents of each evaluation of the finished model."""


def build(
    folder: Path,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Train the embedded model from its seed and write it to `folder`.

    Args:
        folder: gets `model.safetensors`, `config.json`, the tokenizer and `recipe.json` (recipe, curve, scores).
        say: called with a line of progress every few steps.
        on_step: called after every step.

    Returns:
        Held-out accuracy by kind for each kind of evaluation.
    """
    torch.set_num_threads(recipe.threads)
    tokenizer = tiny.build_tokenizer(vocabulary_texts(recipe.seed))
    started = time.perf_counter()
    curve: list[dict[str, object]] = []

    def report(step: int, kind: str, loss: float, accuracy: dict[str, float]) -> None:
        if step % 20 == 0 or step == recipe.steps - 1:
            rounded = {name: round(value, 3) for name, value in accuracy.items()}
            curve.append({"step": step, "rows": kind, "loss": round(loss, 4), **rounded})
            say(
                f"step {step:5d}/{recipe.steps} {time.perf_counter() - started:6.0f} s  {kind:12s} loss {loss:6.3f}  {rounded}"
            )

    model = None
    for step, model in train(recipe, tokenizer, report):
        on_step()
        if step % 300 == 299:
            say(f"held-out after {step + 1} steps: {held_out_scores(model, tokenizer, recipe, documents=16)}")
    assert model is not None
    scores = held_out_scores(model.eval(), tokenizer, recipe, documents=HELD_OUT_DOCUMENTS)
    # Complete before the first file is replaced: `folder` may hold the model that ships.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        finished = Path(partial)
        tiny.save(model, tokenizer, finished)
        record = {
            "recipe": asdict(recipe),
            "fingerprint": load_model(partial, device="cpu").fingerprint,
            "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers")},
            "held_out": scores,
            "curve": curve,
        }
        (finished / "recipe.json").write_text(json.dumps(record, indent=1) + "\n")
        for path in sorted(finished.iterdir()):
            path.replace(folder / path.name)
    return scores


def held_out_scores(
    model: CausalLM, tokenizer: Tokenizer, recipe: Recipe, *, documents: int
) -> dict[str, dict[str, float]]:
    """Accuracy by kind on new documents: in phrasings never trained, in trained ones, and on the longest documents."""
    maker = RowMaker(tokenizer, random.Random(recipe.seed + 1), recipe)
    cases = {
        "held-out phrasings": (8, 6, world.EVAL_CORES),
        "trained phrasings": (8, 6, world.TRAIN_CORES),
        "24 facts, held-out phrasings": (24, 8, world.EVAL_CORES),
    }
    return {
        name: score(model, maker, documents, facts=facts, free=free, cores=cores)
        for name, (facts, free, cores) in cases.items()
    }
