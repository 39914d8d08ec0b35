"""Helpers for tests of the token cache: a task with examples, encoders, and the files of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlora.data import token_cache
from nlora.data.task import Example, Task
from nlora.data.token_cache import TokenCache
from nlora.data.tokenize import ExampleTokenizer

LABELS = ("World", "Sports")
TASK = Task("agnews", "TC", "What is the topic?", LABELS, (), ())
TEXT = "The quick brown fox jumps over the lazy dog, and then it runs to the market. "
# More than one batch, some prompts that are too long, some empty texts.
EXAMPLES = [Example(str(i), f"{i} {TEXT * (i % 5)}", LABELS[i % 2]) for i in range(1100)]
FEW = EXAMPLES[:40]


def keep_everything(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches even the smallest set, in `cache`; returns the folder of the files."""
    monkeypatch.setenv("NLORA_CACHE", str(cache))
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", 1)
    return cache / "tokens"


def make(tokenizer: Any, *, cached: bool = True, **options: Any) -> ExampleTokenizer:
    """An encoder with the usual options, except for these."""
    options = {"encoder_decoder": False, "max_source_tokens": 128, "max_target_tokens": 50} | options
    return ExampleTokenizer(tokenizer, cache=TokenCache(tokenizer) if cached else None, **options)


def files(folder: Path) -> list[str]:
    """The names of all files in the folder."""
    return sorted(path.name for path in folder.iterdir())


def lock_up(encoder: ExampleTokenizer | type[ExampleTokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this encoder, or all of them, fail when it tokenizes a prompt."""

    def refuse(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(encoder, "_prompts", refuse)
