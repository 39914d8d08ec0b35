"""What the tests of the data room share: the released prompts and three kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def t5(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "golden/models/tiny-t5")


@pytest.fixture(scope="session")
def llama(shared: Path) -> Any:
    # The released run had transformers 4's `legacy` way with spaces after special tokens, which only shows
    # where "<s>" stands in the text itself; the encoder lets the tokenizer add it, so no option is needed.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "golden/models/tiny-llama")


@pytest.fixture(scope="session")
def bpe(tiny_tokenizer: Callable[[bool], Any]) -> Any:
    return tiny_tokenizer(False)
