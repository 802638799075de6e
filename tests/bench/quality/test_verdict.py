"""The targets, judged from numbers that are made up."""

from __future__ import annotations

import pytest

from cedkv.bench.quality.verdict import EQUAL_ON, Numbers, targets


def rows(**methods: tuple[float, ...]) -> dict[str, Numbers]:
    """Of every method its ON gain and OFF p99, and the largest p99 where seeds differ."""
    return {name: Numbers(on, p99[0], p99[-1]) for name, (on, *p99) in methods.items()}


def met(found: dict[str, Numbers], cost: float | None = 0.01) -> list[bool]:
    return [target.met for target in targets(found, cost, 0.05)]


def test_nothing_is_judged_without_phase_3() -> None:
    assert targets(rows(base=(0, 0)), None, 0.05) == []


def test_all_are_met_where_nobody_comes_near() -> None:
    found = rows(phase3=(0.95, 0.02), phase2=(0.99, 11.0), base=(0.0, 0.0), random_slots=(0.1, 0.001))
    assert met(found) == [True, True, True]
    assert "cedkv Phase 2 550 ×" in targets(found, None, 0.05)[1].measured


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"lora_off": (0.96, 0.05)}, [False, False]),  # passes with a better ON, and is within ten times
        ({"lora_off": (0.96, 0.051)}, [True, False]),  # does not pass, is within ten times
        ({"lora_off": (0.96, 0.04, 0.06)}, [True, False]),  # does not pass on every seed
        ({"lora_off": (0.90, 0.199)}, [True, False]),  # equal ON by the margin
        ({"lora_off": (0.89, 0.06)}, [True, True]),  # no equal ON
        ({"lora_off": (0.95, 0.2)}, [True, True]),  # ten times is not within
        ({"full_context": (0.99, 0.06)}, [True, True]),  # no memory of equal bytes
    ],
)
def test_a_peer_that_is_as_good_takes_a_target_away(
    others: dict[str, tuple[float, ...]], expected: list[bool]
) -> None:
    assert pytest.approx(0.05) == EQUAL_ON
    assert met(rows(phase3=(0.95, 0.02), **others), None) == expected


def test_phase_3_over_the_limit_meets_nothing_by_default() -> None:
    found = targets(rows(phase3=(0.95, 0.06), base=(0, 0)), 0.06, 0.05)
    assert [target.met for target in found] == [False, True, False]
    assert found[0].measured == "Phase 3 does not pass: 0.06"
    assert found[2].measured == "+6.0%"
