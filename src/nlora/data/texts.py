"""New texts to answer, from a file or from standard input, in the formats of examples or as plain text.

>>> import io
>>> read_texts(None, io.BytesIO(b"It is down again"))
[{'sentence': 'It is down again'}]

The format is that of the file's suffix or, on standard input, JSON if the first line begins like it; `kind` overrides
both. Nothing that looks like a table or like JSON is read as plain text, unless `kind` says so.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from nlora.data.fields import Fields
from nlora.data.readers import FORMATS, READERS, Form, open_file, suffix_of, unknown_format
from nlora.data.rows import ProblemList, to_texts
from nlora.errors import InputErrors, Problem, did_you_mean

STDIN = "standard input"
_SUFFIXES = {**FORMATS, ".txt": "text"}
_JSON_STARTS = {"jsonl": re.compile(r'\{\s*("|\}|$)'), "json": re.compile(r"\[\s*(\{|\]|$)")}


def read_texts(
    file: Path | None,
    stdin: IO[bytes],
    *,
    kind: str | None = None,
    quoting: bool | None = None,
    fields: Fields = Fields(),  # noqa: B008 (immutable)
) -> list[dict[str, Any]]:
    """The rows, each with the field or fields of its text, and with all its other fields.

    file: None: standard input. kind: its format, a key of READERS; None: from the suffix or the first line.
    quoting: whether CSV and TSV cells may be quoted; None: in CSV only. fields: where a row's text is.

    Raises InputErrors with the lines that have no text, or if the format is unknown.
    """
    if kind is not None and kind not in READERS:
        what = f"must be one of {', '.join(READERS)}, not '{kind}'{did_you_mean(kind, READERS)}"
        raise InputErrors([Problem("--format", what)])
    form = Form(labeled=False, quoting=quoting, fields=fields)
    if file is None:
        return _read(io.BytesIO(stdin.read()), STDIN, kind, form)
    kind = kind or _SUFFIXES.get(suffix_of(file))
    try:
        with open_file(file.expanduser()) as opened:
            if kind is None:
                what = unknown_format(file, _SUFFIXES, "; or give its format with --format")
                raise InputErrors([Problem("--file", what)])
            return _read(opened, str(file), kind, form)
    except FileNotFoundError as error:
        raise InputErrors([Problem("--file", f"no such file: {file}")]) from error
    except IsADirectoryError as error:
        raise InputErrors([Problem("--file", f"{file} is a folder; name a file in it")]) from error
    except OSError as error:
        raise InputErrors(
            [Problem("--file", f"{file} cannot be read ({error.strerror or error})")]
        ) from error


def _read(file: IO[bytes], name: str, kind: str | None, form: Form) -> list[dict[str, Any]]:
    """kind: None: from the first line."""
    chosen = kind or _recognized(file, form.fields)
    problems = ProblemList(name)
    rows = to_texts(READERS[chosen](file, form, problems), problems, form.fields)
    found = problems.report()
    if found and kind is None and chosen != "text":
        what = f"{name} begins like JSON and was read as JSON; use --format text to read it as plain text"
        found.append(Problem("--format", what))
    if found:
        raise InputErrors(found)
    return rows


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
