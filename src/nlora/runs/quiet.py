"""Keeps the messages of other libraries off the screen. `nlora --debug` shows them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# What is silenced, and why.
LOGGERS = {
    "bitsandbytes": "PEFT imports it, and it then warns of an optional CPU kernel even if nothing is quantized",
    "huggingface_hub": "it reports every repeated request; a failure ends in one line of ours",
}
WARNINGS = {
    ("", FutureWarning): "changes planned by other libraries, which users of nlora cannot act on",
    ("", DeprecationWarning): "the same, meant for developers",
    (".*pin_memory.*", UserWarning): "torch, on machines without a GPU; pinning is then simply off",
    ("IProgress not found", Warning): "tqdm, in notebooks without ipywidgets; nlora has a bar of its own",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In this block errors are the only messages of these loggers, and these warnings are ignored."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message, category in WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silent(name: str) -> Iterator[None]:
    """In this block a logger says nothing at all."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
