"""File formats of examples, each read into rows: (where, fields) pairs.

>>> import io
>>> list(READERS["csv"](io.BytesIO(b"text,label\\nIt is down,network"), Form(), ProblemList("tickets.csv")))
[('tickets.csv:2', {'text': 'It is down', 'label': 'network'})]

`nlora.data.rows` checks the fields of a row. A new format needs a reader in READERS and a suffix in FORMATS.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nlora.config.characters import UTF_16, is_utf16
from nlora.data.field_error import RepeatedKey
from nlora.data.fields import Fields
from nlora.data.rows import NARROW, ProblemList, shortest
from nlora.errors import first_line

Row = tuple[str, Any]
_COMPRESSED = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip"}


@dataclass(frozen=True, slots=True)
class Form:
    """Properties of a file apart from its format.

    labeled: whether every row needs a label.
    quoting: whether cells of a table may be quoted; None: in CSV, but not in TSV, where a quote is a character.
    fields: those that a table needs.
    """

    labeled: bool = True
    quoting: bool | None = None
    fields: Fields = Fields()  # noqa: RUF009 (immutable)


class NotJsonError(ValueError):
    """A text that cannot be parsed as JSON. line: counted from 1; None: unknown."""

    def __init__(self, what: str, line: int | None) -> None:
        super().__init__(what)
        self.line = line


def parse_json(text: str) -> Any:
    """The value of a JSON text; an object with a duplicate key becomes a RepeatedKey.

    Raises NotJsonError, also for JSON that Python cannot parse (too deeply nested, numbers that are too long).
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"not JSON: {error.msg} (column {error.colno})", error.lineno) from error
    except RecursionError as error:
        raise NotJsonError("lists or objects nested too deeply to be read", None) from error
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise NotJsonError(f"a number of more than {digits} digits; write it as text", None) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else RepeatedKey(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def suffix_of(path: Path) -> str:
    """The suffix that names the format: .csv for tickets.csv and for tickets.csv.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_file(path: Path) -> IO[bytes]:
    """A file to be read from its start, unpacked if it is named .gz. Raises OSError."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    try:
        with gzip.open(path) as packed:
            return io.BytesIO(packed.read())  # Parquet is not read in order
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"not a complete gzip file: {error}") from error


def unknown_format(path: Path, known: Iterable[str], way_out: str = "") -> str:
    """The message for a file with an unknown suffix. way_out: what to do instead of renaming it."""
    if tool := _COMPRESSED.get(path.suffix.lower()):
        return f"{path.name} is compressed, which is not supported; unpack it first: {tool} {path}"
    return f"{path.name} has an unknown format '{suffix_of(path)}'; known: {', '.join(known)}{way_out}"


def _lines(file: IO[bytes], problems: ProblemList) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, counted from 1; a byte order mark is removed.

    Only a newline ends a line. str.splitlines would also split at U+2028, which JSON may contain unescaped.
    """
    for number, raw in enumerate(file, start=1):
        if number == 1 and is_utf16(raw):
            problems.add(problems.file, UTF_16)
            return
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            problems.add(
                f"{problems.file}:{number}", f"not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
            )
            continue
        yield number, line


def _read_text(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    """One text per line, without spaces around it; empty lines are skipped."""
    for number, line in _lines(file, problems):
        if line.strip():
            yield f"{problems.file}:{number}", line.strip()


def _read_jsonl(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    lines = ((number, line.rstrip("\r\n")) for number, line in _lines(file, problems) if line.strip())
    for i, (number, line) in enumerate(lines):
        where = f"{problems.file}:{number}"
        if i == 0 and line.lstrip().startswith("["):
            problems.add(
                where,
                "a list instead of one object per line; if the file is one list, it is JSON: name it .json",
            )
            return
        try:
            yield where, parse_json(line)
        except NotJsonError as error:
            problems.add(where, str(error))


def _read_json(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    value = read_json(file, problems)
    if problems.count:
        return
    if not isinstance(value, list):
        problems.add(problems.file, "expected a list of objects")
        return
    yield from ((f"{problems.file}[{i}]", row) for i, row in enumerate(value))


def read_json(file: IO[bytes], problems: ProblemList) -> Any:
    """The value of a whole file; None, with a problem added, if it cannot be parsed."""
    text = "".join(line for _, line in _lines(file, problems))
    if problems.count:
        return None
    if not text.strip():
        problems.add(problems.file, "is empty")
        return None
    try:
        return parse_json(text)
    except NotJsonError as error:
        hint = "; one object per line is JSONL: name the file .jsonl" if "Extra data" in str(error) else ""
        where = problems.file if error.line is None else f"{problems.file}:{error.line}"
        problems.add(where, f"{error}{hint}")
    return None


def _read_csv(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    return _read_table(file, form, problems, ",", quoting=form.quoting is not False)


def _read_tsv(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    return _read_table(file, form, problems, "\t", quoting=form.quoting is True)


def _read_table(
    file: IO[bytes], form: Form, problems: ProblemList, delimiter: str, *, quoting: bool
) -> Iterator[Row]:
    """Rows of a table whose first line names the columns.

    quoting: quoted cells may contain newlines and delimiters; False: a quote is an ordinary character.
    """
    reader = csv.reader(
        (line for _, line in _lines(file, problems)),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    start = 1
    try:
        with _cells_of_any_length():
            for cells in reader:
                where, start = f"{problems.file}:{start}", reader.line_num + 1
                if not cells:
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    if wrong := _header_problem(header, form, delimiter, quoting):
                        problems.add(where, wrong)
                        return
                elif len(cells) != len(header):
                    hint = "" if quoting else _quoting_hint(cells)
                    problems.add(where, f"{len(cells)} cells, but the header has {len(header)}{hint}")
                else:
                    yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        kind, why = "CSV" if delimiter == "," else "TSV", str(error)
        if "new-line character" in why:
            why = "a line ends with a carriage return alone, as on old Macs; save it with other line ends"
        problems.add(f"{problems.file}:{start}", f"not readable as {kind}: {why}")


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lifts the csv module's process-wide limit of 131,072 characters per cell."""
    before = csv.field_size_limit(2**31 - 1)  # largest C long on all platforms
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _quoting_hint(cells: Sequence[str]) -> str:
    quoted = any(cell.startswith('"') or cell.endswith('"') for cell in cells)
    return "; if cells are quoted, set quoting: true" if quoted else ""


def _header_problem(header: list[str], form: Form, delimiter: str, quoting: bool) -> str | None:
    if duplicate := _duplicate(header, form):
        return duplicate
    wrong = form.fields.problem(header, labeled=form.labeled)
    if wrong and not quoting:
        wrong += _quoting_hint(header)
    if wrong and len(header) == 1:
        mark = {",": "commas", "\t": "tabs"}[delimiter]
        return f"{wrong}; are the columns separated by {mark}?"
    return wrong


def _duplicate(names: Iterable[str], form: Form) -> str | None:
    """Of columns that are read: spreadsheets leave empty ones without a name at the end."""
    read = form.fields.used if form.labeled else {*names, ""} - {""}
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1 and name in read)
    return f"duplicate column '{duplicates[0]}'" if duplicates else None


def _read_parquet(file: IO[bytes], form: Form, problems: ProblemList) -> Iterator[Row]:
    # Imported here, because it is slow and only Parquet needs it.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if wrong := _duplicate(names, form) or form.fields.problem(names, labeled=form.labeled):
            problems.add(problems.file, wrong)
            return
        if form.labeled:  # the others may be pictures, or what Python cannot hold; `nlora predict` keeps all
            names = [name for name in names if name in form.fields.used]
        kinds = {name: table.schema_arrow.field(name).type for name in names}
        values = {name: str(getattr(kind, "value_type", kind)) for name, kind in kinds.items()}  # of lists
        narrow = {name: NARROW[kind] for name, kind in values.items() if kind in NARROW}
        for batch in table.iter_batches(columns=names):
            for row in batch.to_pylist():
                yield f"{problems.file}[{number}]", shortest(row, narrow)
                number += 1
    except UnicodeDecodeError:  # Parquet does not check that its texts are UTF-8
        problems.add(f"{problems.file}[{number}]", "not UTF-8, in this row or a later one")
    # Damaged pages are OSErrors, dates after the year 9999 are OverflowErrors, unknown time zones are KeyErrors.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        zone = "unknown time zone " if isinstance(error, KeyError) else ""
        problems.add(problems.file, f"not readable as Parquet: {zone}{first_line(error)}")


READERS: dict[str, Callable[[IO[bytes], Form, ProblemList], Iterable[Row]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Suffix -> key of READERS, for examples. Plain text has no labels, so only `nlora predict` takes it."""
