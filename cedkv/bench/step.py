"""One training step: forward, loss, backward, Adam; for cedkv and its peers.

Everybody has one memory of S slots, the same B ON and B OFF prompts, all of one length so that nobody pads, and finds
the answers of base and teacher computed already. What is trained differs: cedkv and plain HF train a mixture that feeds
the slots of the top layers, peft the keys and values of every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from cedkv.bench import learners, peers
from cedkv.bench.learners import Batch, Learner
from cedkv.bench.memory import peak_bytes
from cedkv.bench.options import Options
from cedkv.bench.rows import Agreement, Row, Section
from cedkv.bench.subject import Subject
from cedkv.bench.timing import Spread, interleaved, synchroniser

NAME = "step"
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-1}
"""Of loss and gradient, relative to the largest entry: gradients of KLs are differences of probabilities, which cancel."""


def step_section(subject: Subject, options: Options) -> Section:
    """Check losses and gradients at the start, then time steps in turns."""
    scale, model = options.scale, subject.model
    batch, bank = learners.make_batch(subject, options), learners.make_bank(subject)
    every = subject.states(1, subject.every)
    rivals = [learners.ours(model, bank, batch, options), learners.plain(model, bank, batch)]
    adapted = [learners.by_peft(subject, kind, every, batch) for kind in peers.KINDS if options.peers]
    checks = _checks(rivals, adapted, lambda: learners.shifted_gradient(model, every, batch), options.dtype)
    rivals += adapted
    turns: dict[str, Callable[[], object]] = {rival.name: rival.step for rival in rivals}
    seconds = interleaved(turns, 2 * scale.repeats, synchroniser(model.device))
    rows = [
        Row(
            NAME,
            rival.name,
            rival.computed,
            "ms",
            seconds[rival.name].times(1000),
            checks[rival.name],
            {"peak_mib": peak_bytes(rival.step, model.device) / 2**20},
        )
        for rival in rivals
    ]
    return Section(NAME, "Training step", tuple(rows), _notes(batch), _summary(seconds))


def _checks(
    rivals: Sequence[Learner],
    adapted: Sequence[Learner],
    by_injection: Callable[[], tuple[Tensor, Tensor]],
    dtype: str,
) -> dict[str, Agreement]:
    """Loss and gradient of cedkv and plain HF beside one another, and of peft beside injection at all layers."""
    ours, plain = (rival.gradient() for rival in rivals)
    apart = _apart(ours, plain)
    found = {
        rivals[0].name: Agreement("plain HF, loss and gradient", apart, TOLERANCE[dtype]),
        rivals[1].name: Agreement("cedkv, loss and gradient", apart, TOLERANCE[dtype]),
    }
    expected = by_injection() if adapted else None
    for rival in adapted:
        assert expected is not None
        against = "injection at all layers, loss and gradient"
        found[rival.name] = Agreement(against, _apart(rival.gradient(), expected), TOLERANCE[dtype])
    return found


def _apart(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """The largest difference of loss or gradient, relative to the loss and to the gradient's largest entry."""
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _notes(batch: Batch) -> tuple[str, ...]:
    rows, length = batch.off.shape
    return (
        (
            f"{rows} ON prompts ({batch.answer} answer tokens) and {rows} OFF prompts of {length} tokens, one memory; "
            "KL to the teacher, CVaR of the KL to the base, backward, Adam. Base and teacher are computed before."
        ),
        "With one memory there is no worst state to look for; with several cedkv first finds that of every OFF prompt.",
        "peak: tensor memory a step holds beyond model, trunk and memory.",
    )


def _summary(seconds: dict[str, Spread]) -> dict[str, float]:
    ours = seconds[learners.OURS].median
    found = {"step_vs_hf": seconds[learners.HF].median / ours}
    cartridge = seconds.get(peers.CALLED["cartridge"])
    return found if cartridge is None else found | {"step_vs_peft_cartridge": cartridge.median / ours}
