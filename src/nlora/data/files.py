"""People's own examples: JSONL, JSON, CSV, TSV and Parquet files, and data sets of the hub.

    examples, problems = read_examples("tickets/train.jsonl", labels=("billing", "network"))
    examples[0]                     # Example(id='0', sentence='My invoice is wrong', label='billing')
    problems                        # [Problem('tickets/train.jsonl:7', "label 'Billing' is not one of ...")]

Every row needs a text (`sentence`, or else `input`, or else `text`) and a `label` (or else `output`); other
fields are ignored. A new format is one more reader in READERS.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nlora.data import hub
from nlora.data.base import Example
from nlora.data.rows import ProblemList, column_problem, to_examples
from nlora.errors import Problem

Row = tuple[str, Any]


def read_examples(
    source: str,
    *,
    labels: Sequence[str] | None,
    folders: Sequence[Path] = (Path(),),
    split: str = "train",
    key: str = "",
) -> tuple[tuple[Example, ...], list[Problem]]:
    """The examples of a file or hub data set, and what is wrong with it: at most five problems and a count.

    source: a path, or `hub:<data set>[:config][/split]` (needs `nlora[hub]`, else MissingExtraError).
    labels: the task's label words; null: free text, any label is right.
    folders: where a relative path is looked for, in this order.
    split: which split of a hub data set, where the source does not say.
    key: the configuration's key that names the source; problems of the source as a whole bear it.
    """
    if source.startswith(hub.PREFIX):
        problems = ProblemList(source)
        return to_examples(hub.read_rows(source, split, problems), labels, problems), problems.report()
    path = find(source, folders)
    if path is None:
        looked = " and ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        in_folders = "" if Path(source).expanduser().is_absolute() else f" (looked in {looked})"
        return (), [Problem(key or source, f"no such file: {source}{in_folders}")]
    problems = ProblemList(str(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        problems.add(key or str(path), f"{path.name} has an unknown format '{path.suffix}'; known: {known}")
        return (), problems.report()
    try:
        examples = to_examples(reader(path, problems), labels, problems)
    except OSError as error:
        problems.add(str(path), f"cannot be read ({error.strerror or error})")
        examples = ()
    return examples, problems.report()


def find(source: str, folders: Sequence[Path]) -> Path | None:
    """The first file that the source names, `~` understood, relative to one of the folders."""
    path = Path(source).expanduser()
    candidates = (folder / path for folder in folders)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _lines(path: Path, problems: ProblemList) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, counted from 1; a byte order mark is dropped.

    Only a newline ends a line: str.splitlines would also split at U+2028, which JSON may hold unescaped.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                problems.add(f"{path}:{number}", f"not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
                continue
            yield number, line


def _read_jsonl(path: Path, problems: ProblemList) -> Iterator[Row]:
    for number, line in _lines(path, problems):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            problems.add(f"{path}:{number}", f"not JSON: {error.msg} (column {error.colno})")


def _read_json(path: Path, problems: ProblemList) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path, problems))
    if problems.count:
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object per line is JSONL: name the file .jsonl" if error.msg == "Extra data" else ""
        problems.add(f"{path}:{error.lineno}", f"not JSON: {error.msg} (column {error.colno}){hint}")
        return
    if not isinstance(value, list):
        problems.add(str(path), "expected a list of objects")
        return
    yield from ((f"{path}[{i}]", row) for i, row in enumerate(value))


def _read_table(path: Path, problems: ProblemList, delimiter: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file whose first line names the columns; a cell in quotes may hold newlines."""
    lines = _lines(path, problems)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if wrong := _header_problem(header, delimiter):
                    problems.add(where, wrong)
                    return
            elif len(cells) != len(header):
                problems.add(where, f"{len(cells)} cells, but the header has {len(header)}")
            else:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        problems.add(f"{path}:{start}", f"not readable as {path.suffix[1:].upper()}: {error}")


def _header_problem(header: list[str], delimiter: str) -> str | None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return f"the header names '{twice[0]}' twice"
    wrong = column_problem(header)
    if wrong and len(header) == 1:
        mark = {",": "commas", "\t": "tabs"}[delimiter]
        return f"{wrong}; are the columns separated by {mark}?"
    return wrong


def _read_csv(path: Path, problems: ProblemList) -> Iterator[Row]:
    return _read_table(path, problems, ",")


def _read_tsv(path: Path, problems: ProblemList) -> Iterator[Row]:
    return _read_table(path, problems, "\t")


def _read_parquet(path: Path, problems: ProblemList) -> Iterator[Row]:
    # Imported here: only who reads Parquet pays for it.
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if wrong := column_problem(names):
            problems.add(str(path), wrong)
            return
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield f"{path}[{number}]", row
                number += 1
    except pyarrow.ArrowException as error:
        problems.add(str(path), f"not readable as Parquet: {str(error).splitlines()[0]}")


READERS: dict[str, Callable[[Path, ProblemList], Iterable[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
