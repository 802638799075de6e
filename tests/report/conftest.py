from __future__ import annotations

from dataclasses import replace

import pytest

from cedkv import ledger

HOSTILE = (
    "| a | b |\n| --- | --- |\n<script>alert(1)</script>",
    "\x1b[2J\x1b[31mPASS\x07",
    "\u202egnp.exe\u2066",
    "[click](javascript:alert(1)) ![x](http://evil/x.png)",
    "]]></failure><failure/>&amp;&#0;",
    "\ufffe\ud800`code` **bold** <!-- ",
    "```\n# Verdict\nGate B pass\n```",
    "x" * 5000,
    "",
    "\\|\\`\\\\",
)


@pytest.fixture
def hostile_run(runs):
    """A failing run in which every free text, from its name to its prompts, tries to break out."""
    run = runs.run(deltas=[0.01] * 300 + [0.9] * 100)
    rows = tuple(
        replace(row, prompt=text, family=text, state=text, base_top=text, student_top=text)
        for row, text in zip(run.stress_table, HOSTILE * 40, strict=True)
    )
    tags = {
        **run.tags,
        ledger.TAG_SOURCE_P99: HOSTILE[0],
        ledger.TAG_GIT_COMMIT: HOSTILE[3],
        "cedkv.error": HOSTILE[1],
    }
    return replace(run, name=HOSTILE[0], stress_table=rows, tags=tags, problems=HOSTILE)


@pytest.fixture
def traces():
    """What a run of 100 steps with an eval tick every fifth leaves; one reading was not finite."""
    mass = dict(zip(ledger.ATOM_TYPES, (0.1, 0.3, 0.3, 0.05, 0.15, 0.1), strict=True))
    ticks = range(0, 100, 5)
    return {
        ledger.LOSS_CURVE: [
            {
                "step": step,
                ledger.LOSS: 2 - step / 100,
                ledger.LOSS_ON: 1.0,
                ledger.LOSS_OFF: None if step == 7 else 0.3,
                ledger.LOSS_STR: 0.2,
            }
            for step in range(100)
        ],
        ledger.LAMBDA_TRACE: [
            {
                "tick": tick,
                "step": step,
                ledger.P99_RAW: None if tick == 3 else 0.3,
                ledger.P99_EMA: 0.25,
                "delta": 0.01,
                ledger.LAMBDA_OFF: 2 + 0.01 * (tick + 1),
            }
            for tick, step in enumerate(ticks)
        ],
        ledger.TOPK_TRACE: [{"step": step, ledger.TOPK: 32 if step < 25 else 16} for step in range(50)],
        ledger.ATOM_TYPE_MASS: [{"step": step, **mass, "delimiter_slot_max": 0.149} for step in ticks],
        ledger.WARN_TRACE: [
            {
                "tick": tick,
                "step": step,
                "value": 0.3,
                "limit": 0.05,
                "margin": 0.0,
                "consecutive": tick + 1,
                "triggered": tick >= 2,
                "verified": None,
            }
            for tick, step in enumerate(ticks)
        ],
    }
