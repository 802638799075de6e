from __future__ import annotations

import pytest

from cedkv.data.tokens import FastTokenizer


@pytest.fixture(scope="session")
def embedded() -> FastTokenizer:
    """The tokenizer of the model that ships with the package."""
    from cedkv.models.load import load_tokenizer

    return load_tokenizer("embedded").tokenizer
