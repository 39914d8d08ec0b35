"""Encoded examples on the disk: what one run has tokenised, every later run reads.

    encoder = Encoder(tokenizer, ..., cache=EncodedCache(tokenizer))
    encoder.encode(task, task.train)       # tokenises, and writes ~/.cache/nlora/encoded/<key>.arrow
    encoder.encode(task, task.train)       # reads that file, in this process or in any later one

The key is a SHA-256 over everything that decides an id: the tokenizer, the encoder's settings and its code,
the prompt's wording, and each text and answer in order. So another seed, method or stage finds the file, and
whatever would give other ids does not.

A file is an Arrow stream (columns prompt_ids and answer_ids), then 32 bytes that say that it is whole and the
one asked for; any other is replaced. Files are read by memory map. They may be deleted at any time; when one
is written and all of them exceed LIMIT_BYTES, the least recently used ones go, but none that a run may still
be reading. A folder that cannot be written is no error: then every run tokenises for itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import os
import secrets
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nlora.atomic import TEMPORARY
from nlora.data import encode
from nlora.data.encode import Encoded
from nlora.data.fetch import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlora.data.base import Example

logger = logging.getLogger(__name__)

LEAST_CHARACTERS = 100_000
"""Prompts of fewer characters in all are not kept: tokenising them takes about as long as opening a file does."""

LIMIT_BYTES = 2 << 30
"""What all files together may take: the tokens of about five million examples."""

KEPT_SECONDS = 7 * 86_400
"""No file goes this soon after its last use: on a network folder that would kill a run that still maps it."""

_DIGEST_BYTES = 32
_BATCH = 1024
"""Examples hashed at a time: one by one takes twice as long."""


class EncodedCache:
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
        batches: Iterable[Sequence[Encoded]],
    ) -> Sequence[Encoded]:
        """The examples as `batches` would give them; `batches` is consumed only if no file holds them.

        settings: what decides the ids beside tokenizer, head and examples; JSON values.
        head: what the prompt says before each text.
        """
        characters = len(head) * len(examples) + sum(len(example.sentence) for example in examples)
        key = self._key(settings, head, examples) if characters >= LEAST_CHARACTERS else None
        if key is None:
            return list(chain.from_iterable(batches))
        path = self._folder / f"{key}.arrow"
        columns = _read(path, key)
        if columns is None:
            columns = [_columns(batch) for batch in batches]
            self._write(path, key, columns)
        return EncodedRows(columns)

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

    def _write(self, path: Path, key: str, columns: Sequence[Any]) -> None:
        """Publish a file in one step, so that runs side by side see the whole of it or nothing.

        Nothing is flushed: what a power failure leaves of it has not the digest of a whole file.
        """
        import pyarrow

        part = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("x+b") as file:
                with pyarrow.ipc.new_stream(file, columns[0].schema) as writer:
                    for some in columns:
                        writer.write_batch(some)
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
                elif path.name.startswith(TEMPORARY) and is_old:
                    path.unlink()
        surplus_bytes = sum(size for _, size, _, _ in files) - LIMIT_BYTES
        for _, size, is_old, path in sorted(files):
            if surplus_bytes > 0 and is_old:
                with suppress(OSError):
                    path.unlink()
                surplus_bytes -= size


class EncodedRows(Sequence[Encoded]):
    """Examples in columns: 4 bytes a token, where a list of Python's integers takes about 40.

    Each access makes fresh lists. Can be pickled, and given to a DataLoader as it is.
    """

    def __init__(self, columns: Sequence[Any]) -> None:
        """columns: record batches with columns prompt_ids and answer_ids."""
        self._blocks = [(_Lists(some.column(0)), _Lists(some.column(1))) for some in columns]
        self._ends = list(accumulate(some.num_rows for some in columns))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[operator.index(index)]
        block = bisect_right(self._ends, i)
        prompts, answers = self._blocks[block]
        row = i - (self._ends[block - 1] if block else 0)
        return Encoded(prompts.row(row), answers.row(row))

    def __iter__(self) -> Iterator[Encoded]:
        for prompts, answers in self._blocks:
            for prompt, answer in zip(prompts, answers, strict=True):
                yield Encoded(prompt, answer)


class _Lists:
    """Lists of ids in two buffers: row i is values[starts[i] : starts[i + 1]].

    The buffers are read as they are, since pyarrow's `to_numpy` imports pandas where it is installed.
    """

    def __init__(self, column: Any) -> None:
        _, self._starts, _, self._values = column.buffers()  # those between say which values are missing
        self._rows = len(column)

    def row(self, i: int) -> list[int]:
        starts, values = memoryview(self._starts).cast("i"), memoryview(self._values).cast("i")
        return values[starts[i] : starts[i + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        starts, values = memoryview(self._starts).cast("i"), memoryview(self._values).cast("i").tolist()
        return (values[start:end] for start, end in pairwise(starts[: self._rows + 1].tolist()))


def _columns(examples: Sequence[Encoded]) -> Any:
    """A pyarrow RecordBatch."""
    import pyarrow

    columns = [
        _column([example.prompt_ids for example in examples]),
        _column([example.answer_ids for example in examples]),
    ]
    return pyarrow.RecordBatch.from_arrays(columns, ["prompt_ids", "answer_ids"])


def _column(rows: Sequence[Sequence[int]]) -> Any:
    """Lists of ids as a pyarrow ListArray (by its buffers, as `_Lists` reads them)."""
    import pyarrow

    starts = array("i", accumulate(map(len, rows), initial=0))
    values = array("i", chain.from_iterable(rows))
    ids = pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])
    kind = pyarrow.list_(pyarrow.int32())
    return pyarrow.Array.from_buffers(kind, len(rows), [None, pyarrow.py_buffer(starts)], children=[ids])


def _read(path: Path, key: str) -> list[Any] | None:
    """The record batches of a file, mapped into memory; None if it is not there, not whole, or another's."""
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
    return list(pyarrow.ipc.open_stream(stream))


def _identity(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """All that decides which ids a tokenizer and our code make of a text; empty if that cannot be told.

    It can for the tokenizers that transformers runs in Rust. One in plain Python, or with code of the
    model's own, may change without any sign of it.
    """
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        return b""
    try:
        backend: str = tokenizer.backend_tokenizer.to_str()
        code = Path(encode.__file__).read_bytes()
    except Exception:  # it has parts in Python (tokenizers raises no narrower class), or our code is no file
        return b""
    own = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special": tokenizer.special_tokens_map,
        "clean_up": tokenizer.clean_up_tokenization_spaces,
        "versions": [version("transformers"), version("tokenizers")],
        "code": hashlib.sha256(code).hexdigest(),
    }
    return _framed([backend, json.dumps(own, sort_keys=True, default=str)])


def _framed(texts: Sequence[str]) -> bytes:
    """The texts with their lengths, so that no two lists of texts give the same bytes."""
    lengths = " ".join(map(str, map(len, texts)))
    # surrogatepass: half a character, as JSON can hold it, is the tokenizer's business and not ours.
    return f"{lengths}:{''.join(texts)}".encode("utf-8", "surrogatepass")
