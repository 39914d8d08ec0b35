"""Encoded examples on the disk: what one run has tokenized, every later run reads.

    encoder = ExampleTokenizer(tokenizer, ..., cache=TokenCache(tokenizer))
    encoder.encode(task, task.train)       # tokenizes, and writes ~/.cache/nlora/encoded/<key>.arrow
    encoder.encode(task, task.train)       # reads that file, in this process or in any later one

The key is a SHA-256 over everything that decides an id: the tokenizer, the encoder's settings, the prompt's wording,
each text and answer in order, and `FORMAT`. So another seed, method or stage finds the file, and whatever would give
other ids does not.

A file is an Arrow stream of the blocks of `nlora.data.columns` (columns same, cut, rest_ids and answer_ids; the first
prompt in the schema's metadata), then 32 bytes that say that it is whole and the one asked for; any other is replaced.
Files are read by memory map. They may be deleted at any time; when one is written and all of them exceed LIMIT_BYTES,
the least recently used ones go, but none that a run may still be reading. A folder that cannot be written is no error:
then every run tokenizes for itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.data.columns import Block, Lists, TokenizedExamples, integers
from nlora.data.downloads import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlora.data.task import Example

logger = logging.getLogger(__name__)

FORMAT = 2
"""To be raised with every change by which a prompt or an answer gets other ids, or a file another layout."""

LEAST_CHARACTERS = 100_000
"""Prompts of fewer characters in all are not kept: tokenizing them takes about as long as opening a file does."""

LIMIT_BYTES = 2 << 30
"""What all files together may take: the tokens of about five million examples."""

_PART = ".tmp-"
"""What the name of a file begins with that is being written."""
KEPT_SECONDS = 7 * 86_400
"""No file goes this soon after its last use: on a network folder that would kill a run that still maps it."""

_DIGEST_BYTES = 32
_BATCH = 1024
"""Examples hashed at a time: one by one takes twice as long."""


class TokenCache:
    """Keeps the examples that one tokenizer has encoded.

    folder: where the files lie; None: `encoded` in nlora's cache folder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._folder = folder or cache_folder() / "encoded"
        self._identity: bytes | None = None
        self._complained = False

    def rows(
        self,
        settings: Mapping[str, Any],
        head: str,
        examples: Sequence[Example],
        blocks: Iterable[Block],
    ) -> TokenizedExamples:
        """The examples as `blocks` would give them; `blocks` is consumed only if no file holds them.

        settings: what decides the ids beside tokenizer, head and examples; JSON values.
        head: what the prompt says before each text.
        """
        characters = len(head) * len(examples) + sum(len(example.sentence) for example in examples)
        key = self._key(settings, head, examples) if characters >= LEAST_CHARACTERS else None
        if key is None:
            return TokenizedExamples(blocks)
        path = self._folder / f"{key}.arrow"
        rows = _read(path, key)
        if rows is None:
            rows = TokenizedExamples(blocks)
            self._write(path, key, rows.blocks)
        return rows

    def _key(self, settings: Mapping[str, Any], head: str, examples: Sequence[Example]) -> str | None:
        """64 hexadecimal digits; None if the tokenizer cannot say what it is."""
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

    def _write(self, path: Path, key: str, blocks: Sequence[Block]) -> None:
        """Publish a file in one step, so that runs side by side see the whole of it or nothing.

        Nothing is flushed: what a power failure leaves of it has not the digest of a whole file.
        """
        import pyarrow

        part = path.with_name(f"{_PART}{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("x+b") as file:
                with pyarrow.ipc.new_stream(file, _schema(blocks[0].first)) as writer:
                    for block in blocks:
                        writer.write_batch(_columns(block))
                file.seek(0)
                file.write(hashlib.file_digest(file, lambda: hashlib.sha256(key.encode())).digest())
            part.replace(path)
        except OSError as error:
            if not self._complained:
                reason = error.strerror or error
                logger.warning("%s: %s; tokens are not kept for later runs", self._folder, reason)
            self._complained = True
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        self._make_room()

    def _make_room(self) -> None:
        """Remove the least recently used files beyond the limit, and what killed processes left."""
        now = time.time()
        files = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                about = path.stat()
                is_old = now - about.st_mtime > KEPT_SECONDS
                if path.suffix == ".arrow":
                    files.append((about.st_mtime, about.st_size, is_old, path))
                elif path.name.startswith(_PART) and is_old:
                    path.unlink()
        surplus_bytes = sum(size for _, size, _, _ in files) - LIMIT_BYTES
        for _, size, is_old, path in sorted(files):
            if surplus_bytes > 0 and is_old:
                with suppress(OSError):
                    path.unlink()
                surplus_bytes -= size


def _schema(first: Sequence[int]) -> Any:
    import pyarrow

    kinds = {"same": pyarrow.int32(), "cut": pyarrow.int32()}
    kinds |= dict.fromkeys(("rest_ids", "answer_ids"), pyarrow.list_(pyarrow.int32()))
    return pyarrow.schema(kinds, metadata={"first": array("i", first).tobytes()})


def _columns(block: Block) -> Any:
    """A pyarrow RecordBatch of the block's buffers as they are."""
    import pyarrow

    def numbers(buffer: Any) -> Any:
        count = len(integers(buffer))
        return pyarrow.Array.from_buffers(pyarrow.int32(), count, [None, pyarrow.py_buffer(buffer)])

    def lists(column: Lists) -> Any:
        starts, ids = pyarrow.py_buffer(column.starts), numbers(column.values)
        kind = pyarrow.list_(pyarrow.int32())
        return pyarrow.Array.from_buffers(kind, block.rows, [None, starts], children=[ids])

    columns = [numbers(block.same), numbers(block.cut), lists(block.rests), lists(block.answers)]
    return pyarrow.RecordBatch.from_arrays(columns, schema=_schema(block.first))


def _block(columns: Any, first: list[int]) -> Block:
    """The block of a RecordBatch; its buffers are read as they are (`to_numpy` imports pandas where it is there)."""
    same, cut, rests, answers = columns.columns
    # The other buffers say which values are missing.
    lists = [Lists(column.buffers()[1], column.buffers()[3]) for column in (rests, answers)]
    return Block(columns.num_rows, first, same.buffers()[1], cut.buffers()[1], *lists)


def _read(path: Path, key: str) -> TokenizedExamples | None:
    """The examples of a file, mapped into memory; None if it is not there, not whole, or another's."""
    import pyarrow

    try:
        whole = pyarrow.memory_map(str(path)).read_buffer()
    except (OSError, pyarrow.ArrowException):
        return None
    stream = whole.slice(0, max(whole.size - _DIGEST_BYTES, 0))
    digest = hashlib.sha256(key.encode())
    digest.update(stream)
    if whole.slice(stream.size).to_pybytes() != digest.digest():
        logger.info("%s is damaged and will be written again", path)
        return None
    with suppress(OSError):
        os.utime(path)  # the time of the last use
    batches = pyarrow.ipc.open_stream(stream)
    first = array("i", batches.schema.metadata[b"first"]).tolist()
    return TokenizedExamples(_block(columns, first) for columns in batches)


def _identity(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """All that decides which ids a tokenizer and nlora make of a text; empty if that cannot be told.

    It can for the tokenizers that transformers runs in Rust. One in plain Python, or with code of the
    model's own, may change without any sign of it.
    """
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        return b""
    try:
        backend: str = tokenizer.backend_tokenizer.to_str()
    except Exception:  # it has parts in Python (tokenizers raises no narrower class)
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
    # surrogatepass: half a character, as JSON can hold it, is the tokenizer's business and not ours.
    return f"{lengths}:{''.join(texts)}".encode("utf-8", "surrogatepass")
