"""Fixtures of the data tests: the released prompts and three kinds of tokenizers."""

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
    # The released run used the `legacy` option of transformers 4 for spaces after special tokens. It only has an
    # effect if "<s>" is part of the text; here the tokenizer adds it, so the option is not needed.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "golden/models/tiny-llama")


@pytest.fixture(scope="session")
def bpe(tiny_tokenizer: Callable[[bool], Any]) -> Any:
    return tiny_tokenizer(False)
