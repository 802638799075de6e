"""`cedkv bench speed`: the sections that were asked for, one after the other in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cedkv.bench import figure, machine, peers, report
from cedkv.bench.growth import growth_section
from cedkv.bench.options import Options
from cedkv.bench.rows import Section
from cedkv.bench.step import step_section
from cedkv.bench.stress import stress_section
from cedkv.bench.subject import check_model, load_subject
from cedkv.core.errors import UserError
from cedkv.models.load import pick_device

MARKDOWN, FIGURE = "speed.md", "speed.svg"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out: as text, as JSON, and whether every row's results are right."""

    markdown: str
    json: str
    agrees: bool


def measure(options: Options, out: Path, say: Callable[[str], object]) -> Outcome:
    """Measure, and write the tables and the figure to the folder `out`.

    Args:
        say: told what is being measured, and why there is no figure.

    Raises:
        UserError: a missing peer, device, shape or folder; before anything is measured.
    """
    if options.peers and {"stress", "step", "growth"} & set(options.sections):
        peers.check_peft()
    pick_device(options.device)
    check_model(options.model)
    _make(out)
    facts = machine.facts(options.device, options.dtype)
    sections = list(_sections(options, say))
    drawn = figure.can_draw() and figure.draw(sections, out / FIGURE)
    if not figure.can_draw():
        say(figure.MISSING)
    markdown = report.to_markdown(facts, options.model, sections, FIGURE if drawn else None)
    (out / MARKDOWN).write_text(markdown)
    as_json = report.to_json(facts, asdict(options), sections)
    return Outcome(markdown, as_json, all(row.agrees for section in sections for row in section.rows))


def _sections(options: Options, say: Callable[[str], object]) -> Iterator[Section]:
    """One after the other. MLflow and pydantic are imported for the last two only: a bare GPU machine may lack them."""
    if {"stress", "step"} & set(options.sections):
        subject = load_subject(options)
        if "stress" in options.sections:
            say("measuring stress evaluation ...")
            yield stress_section(subject, options)
        if "step" in options.sections:
            say("measuring the training step ...")
            yield step_section(subject, options)
        del subject
    if "growth" in options.sections:
        yield growth_section(options, say)
    if "tracking" in options.sections:
        from cedkv.bench.tracking import tracking_section

        say("measuring logging ...")
        yield tracking_section(options)
    if "gate" in options.sections:
        from cedkv.bench.gate import gate_section

        say("measuring verdicts ...")
        yield gate_section(options)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {str(folder)!r} is no folder to write to ({error.strerror}); name another"
        ) from error
