"""The examples in the docstrings of the mathematics are executed."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize(("module", "examples"), [("risk", 3), ("losses", 5), ("stats", 3), ("schedule", 1)])
def test_examples_give_what_they_say(module, examples):
    found = importlib.import_module(f"cedkv.core.{module}")
    result = doctest.testmod(found, extraglobs={"torch": torch})
    assert (result.failed, result.attempted) == (0, examples)
