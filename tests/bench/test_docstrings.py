from __future__ import annotations

import doctest

import pytest

from cedkv.bench import fit, macs, report
from cedkv.bench.quality import report as quality


@pytest.mark.parametrize("module", [fit, macs, report, quality], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module: object) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
