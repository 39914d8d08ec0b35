"""New texts to answer, from a file or from standard input, in the formats of examples or as plain text.

>>> import io
>>> list(read_texts(None, io.BytesIO(b"It is down again")))
[{'sentence': 'It is down again'}]

The format is that of the file's suffix or, on standard input, JSON if the first line begins like it; `kind` overrides
both. A first line that looks like a table or like JSON is never read as plain text, unless `kind` says so.
"""

from __future__ import annotations

import re
import shutil
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from nlora.config.paths import expanded
from nlora.data.fields import Fields
from nlora.data.readers import FORMATS, READERS, Form, open_file, suffix_of, unknown_format
from nlora.data.rows import ProblemList, to_texts
from nlora.errors import InputErrors, Problem, did_you_mean

STDIN = "standard input"
_SUFFIXES = {**FORMATS, ".txt": "text"}
_IN_MEMORY = 1 << 24
"""Bytes of standard input that are kept in memory; more go to a temporary file."""
_JSON_STARTS = {"jsonl": re.compile(r'\{\s*("|\}|$)'), "json": re.compile(r"\[\s*(\{|\]|$)")}


class Texts:
    """The rows of an input, read anew for each iteration, so that they do not all have to fit into memory.

    Each row has the field or fields of its text, and all its other fields. All rows are checked when the object
    is made: raises InputErrors with the lines that have no text.
    """

    def __init__(
        self,
        source: Path | IO[bytes],
        name: str,
        kind: str | None,
        form: Form,
        added: Collection[str] = (),
    ) -> None:
        """source: a file's path, or a seekable file, which is closed at the end. kind: None: from the first line."""
        self._source, self._name, self._form, self._added = source, name, form, added
        if not isinstance(source, Path):
            weakref.finalize(self, source.close)
        with self._opened() as file:
            self._kind = kind or _recognized(file, form.fields)
        try:
            self._count = sum(1 for _ in self)
        except InputErrors as error:
            what = f"{name} begins like JSON and was read as JSON; use --format text to read it as plain text"
            guessed = kind is None and self._kind != "text" and self._is_odd()
            hint = [Problem("--format", what)] if guessed else []
            raise InputErrors([*error.problems, *hint]) from None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        problems = ProblemList(self._name)
        with self._opened() as file:
            rows = READERS[self._kind](file, self._form, problems)
            yield from to_texts(rows, problems, self._form.fields, self._added)
        if found := problems.report():
            raise InputErrors(found)

    def _is_odd(self) -> bool:
        """Whether there is a problem also where the rows may have any field."""
        problems = ProblemList(self._name)
        with self._opened() as file:
            for _ in to_texts(READERS[self._kind](file, self._form, problems), problems, self._form.fields):
                pass
        return problems.count > 0

    def _opened(self) -> Any:
        if isinstance(self._source, Path):
            return open_file(self._source)
        self._source.seek(0)
        return nullcontext(self._source)


def read_texts(
    file: Path | None,
    stdin: IO[bytes],
    *,
    kind: str | None = None,
    quoting: bool | None = None,
    fields: Fields = Fields(),  # noqa: B008 (immutable)
    added: Collection[str] = (),
) -> Texts:
    """The texts of a file or of standard input, each with all its other fields.

    file: None: standard input. kind: its format, a key of READERS; None: from the suffix or the first line.
    quoting: whether CSV and TSV cells may be quoted; None: in CSV only. fields: where a row's text is.
    added: fields that no row may have, because it is to get them.

    Raises InputErrors with the lines that have no text, or if the format is unknown.
    """
    if kind is not None and kind not in READERS:
        what = f"must be one of {', '.join(READERS)}, not '{kind}'{did_you_mean(kind, READERS)}"
        raise InputErrors([Problem("--format", what)])
    form = Form(labeled=False, quoting=quoting, fields=fields)
    if file is None:
        return Texts(_copied(stdin), STDIN, kind, form, added)
    kind = kind or _SUFFIXES.get(suffix_of(file))
    try:
        with open_file(path := expanded(file)) as opened:
            if kind is None:
                what = unknown_format(file, _SUFFIXES, "; or give its format with --format")
                raise InputErrors([Problem("--file", what)])
            source = path if opened.seekable() else _copied(opened)
        return Texts(source, str(file), kind, form, added)
    except FileNotFoundError as error:
        raise InputErrors([Problem("--file", f"no such file: {file}")]) from error
    except IsADirectoryError as error:
        raise InputErrors([Problem("--file", f"{file} is a folder; name a file in it")]) from error
    except OSError as error:
        raise InputErrors(
            [Problem("--file", f"{file} cannot be read ({error.strerror or error})")]
        ) from error


def _copied(file: IO[bytes]) -> IO[bytes]:
    """What can be read only once, as a file that can be read again."""
    copy: IO[bytes] = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 (deleted with its last reference)
    shutil.copyfileobj(file, copy)
    return copy


def _recognized(file: IO[bytes], fields: Fields) -> str:
    """json, jsonl or text, from the first non-empty line. Raises InputErrors for the header of a table."""
    start = next((line for line in (raw.strip() for raw in file) if line), b"").decode("utf-8-sig", "replace")
    file.seek(0)
    if _is_header(start, fields.places or fields.text):
        what = "looks like the header of a table; use --format csv or tsv, or --format text for plain text"
        raise InputErrors([Problem(STDIN, f"'{start[:60]}' {what}")])
    return next((kind for kind, begins in _JSON_STARTS.items() if begins.match(start)), "text")


def _is_header(line: str, names: Sequence[str]) -> bool:
    """Whether a line consists of column names, one of them that of the text."""
    for delimiter in ",\t;":
        cells = [cell.strip(' "') for cell in line.split(delimiter)]
        if any(cell in names for cell in cells) and all(cell and " " not in cell for cell in cells):
            return True
    return False
