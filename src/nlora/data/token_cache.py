"""Token ids on disk: what one run has tokenized, every later run reads.

Files are in ~/.cache/nlora/tokens, and named by a key, which is a SHA-256 of everything that determines the ids:
the tokenizer, the settings of the ExampleTokenizer, the wording of the prompt, each text and answer in order, and
`FORMAT`. So a run with another seed or method finds the file, and a run that would get other ids does not.

A file holds the arrays of `nlora.data.columns.Columns`, with NumPy's checksums; a damaged one is replaced. Files may
be deleted at any time. When their total size exceeds LIMIT_BYTES, the least recently used ones are removed. A folder
that cannot be written is not an error: then every run tokenizes for itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlora.data.columns import Columns
from nlora.data.downloads import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlora.data.task import Example

logger = logging.getLogger(__name__)

FORMAT = 4
"""Raise it with every change that gives a prompt or an answer other ids, or a file another layout."""

LEAST_CHARACTERS = 100_000
"""Smaller sets, prompts included, are not cached: tokenizing them takes about as long as opening a file."""

LIMIT_BYTES = 2 << 30
"""Most that all files together may take: the tokens of about five million examples."""

_PART = ".tmp-"
"""Prefix of the name of a file that is being written."""

_ABANDONED_SECONDS = 86_400
"""Age at which an unfinished file belongs to a process that was killed."""

_BATCH = 1024
"""Examples hashed at a time: one by one takes twice as long."""


class TokenCache:
    """The examples that one tokenizer has tokenized.

    folder: where the files are; None: `tokens` in nlora's cache folder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._folder = folder or cache_folder() / "tokens"
        self._identity: bytes | None = None
        self._has_warned = False

    def columns(
        self,
        settings: Mapping[str, Any],
        head: str,
        examples: Sequence[Example],
        tokenize: Callable[[], Columns],
    ) -> Columns:
        """The tokens of the examples; `tokenize` is called only if no file has them.

        settings: what determines the ids apart from tokenizer, head and examples; JSON values.
        head: the prompt's part before each text.
        """
        characters = len(head) * len(examples) + sum(len(example.sentence) for example in examples)
        key = self._key(settings, head, examples) if characters >= LEAST_CHARACTERS else None
        if key is None:
            return tokenize()
        path = self._folder / f"{key}.npz"
        columns = _read(path)
        if columns is None:
            columns = tokenize()
            self._write(path, columns)
        return columns

    def _key(self, settings: Mapping[str, Any], head: str, examples: Sequence[Example]) -> str | None:
        """64 hexadecimal digits; None if the tokenizer cannot be identified."""
        if self._identity is None:
            self._identity = _identity(self._tokenizer)
        if not self._identity:
            return None
        digest = hashlib.sha256(self._identity)
        digest.update(_framed([json.dumps(settings, sort_keys=True), head]))
        for start in range(0, len(examples), _BATCH):
            some = examples[start : start + _BATCH]
            digest.update(_framed([text for example in some for text in (example.sentence, example.label)]))
        return digest.hexdigest()

    def _write(self, path: Path, columns: Columns) -> None:
        """Publishes a file in one step, so that concurrent runs see all of it or nothing.

        It is not flushed to the disk: what a power failure leaves of it fails its checksums.
        """
        part = path.with_name(f"{_PART}{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                np.savez(file, **{field.name: getattr(columns, field.name) for field in fields(Columns)})
            part.replace(path)
        except OSError as error:
            if not self._has_warned:
                reason = error.strerror or error
                logger.warning("%s: %s; tokens are not cached for later runs", self._folder, reason)
            self._has_warned = True
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        self._clean_up()

    def _clean_up(self) -> None:
        """Removes the least recently used files beyond the limit, and unfinished ones of killed processes."""
        total_bytes = 0
        with suppress(OSError):
            newest_first = sorted(
                ((p.stat(), p) for p in self._folder.iterdir()), key=lambda f: -f[0].st_mtime
            )
            for facts, path in newest_first:
                if path.suffix == ".npz":
                    total_bytes += facts.st_size
                    if total_bytes > LIMIT_BYTES:
                        path.unlink()
                elif path.name.startswith(_PART) and time.time() - facts.st_mtime > _ABANDONED_SECONDS:
                    path.unlink()


def _read(path: Path) -> Columns | None:
    """The columns in a file; None if there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            columns = Columns(**arrays)
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile and NumPy raise many classes when bytes are damaged
        logger.info("%s is damaged and will be written again (%s)", path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # time of the last use
    return columns


def _identity(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Everything that determines which ids a tokenizer and nlora make of a text; empty if that is unknown.

    It is known for the tokenizers that transformers runs in Rust. One in plain Python, or with the model's own code,
    may change without notice.
    """
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        return b""
    try:
        backend: str = tokenizer.backend_tokenizer.to_str()
    except Exception:  # parts in Python cannot be serialized (tokenizers raises no narrower class)
        return b""
    own = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special": tokenizer.special_tokens_map,
        "clean_up": tokenizer.clean_up_tokenization_spaces,
        "versions": [version("transformers"), version("tokenizers")],
        "format": FORMAT,
    }
    return _framed([backend, json.dumps(own, sort_keys=True, default=str)])


def _framed(texts: Sequence[str]) -> bytes:
    """The texts with their lengths, so that no two lists of texts give the same bytes."""
    lengths = " ".join(map(str, map(len, texts)))
    # surrogatepass: JSON can hold half a character, and tokenizers take it.
    return f"{lengths}:{''.join(texts)}".encode("utf-8", "surrogatepass")
