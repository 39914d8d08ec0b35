"""New texts to answer, of any format that examples have, or plain text; from a file or from standard input.

    read_texts(Path("new.csv"), sys.stdin.buffer)      # [{"id": "7", "sentence": "It is down"}, ...]

A file's suffix says its format, standard input's first line whether it is JSON; `kind` overrules both. Nothing
that could be a table or JSON is taken for plain text without being told so.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import IO, Any

from nlora.data.readers import FORMATS, READERS, Form, unknown_format
from nlora.data.rows import TEXT_FIELDS, ProblemList, to_texts
from nlora.errors import InputErrors, Problem, did_you_mean

STDIN = "standard input"
_SUFFIXES = {**FORMATS, ".txt": "text"}
_JSON_STARTS = {"jsonl": re.compile(r'\{\s*("|\}|$)'), "json": re.compile(r"\[\s*(\{|\]|$)")}


def read_texts(
    file: Path | None, stdin: IO[bytes], *, kind: str | None = None, quoting: bool | None = None
) -> list[dict[str, Any]]:
    """The rows, each with a text as `sentence`, `input` or `text`; their other fields, a label too, are kept.

    file: None: standard input. kind: its format, a key of READERS; None: by the suffix or the first line.
    quoting: whether cells of CSV and TSV may stand in quotes; None: in CSV only.

    Raises InputErrors with the lines that hold no text, or where the format cannot be told.
    """
    if kind is not None and kind not in READERS:
        what = f"must be one of {', '.join(READERS)}, not '{kind}'{did_you_mean(kind, READERS)}"
        raise InputErrors([Problem("--format", what)])
    if file is None:
        return _read(io.BytesIO(stdin.read()), STDIN, kind, quoting)
    kind = kind or _SUFFIXES.get(file.suffix.lower())
    try:
        with file.expanduser().open("rb") as opened:
            if kind is None:
                what = unknown_format(file, _SUFFIXES, "; or say by --format what it is")
                raise InputErrors([Problem("--file", what)])
            return _read(opened, str(file), kind, quoting)
    except FileNotFoundError as error:
        raise InputErrors([Problem("--file", f"no such file: {file}")]) from error
    except IsADirectoryError as error:
        raise InputErrors([Problem("--file", f"{file} is a folder; name a file in it")]) from error
    except OSError as error:
        raise InputErrors(
            [Problem("--file", f"{file} cannot be read ({error.strerror or error})")]
        ) from error


def _read(file: IO[bytes], name: str, kind: str | None, quoting: bool | None) -> list[dict[str, Any]]:
    """kind: None: by the first line, which is then read again."""
    chosen = kind or _recognized(file)
    problems = ProblemList(name)
    rows = to_texts(READERS[chosen](file, Form(labeled=False, quoting=quoting), problems), problems)
    found = problems.report()
    if found and kind is None and chosen != "text":
        what = f"{name} begins as JSON does and was read as that; --format text takes its lines as they are"
        found.append(Problem("--format", what))
    if found:
        raise InputErrors(found)
    return rows


def _recognized(file: IO[bytes]) -> str:
    """json, jsonl or text, by the first line that is not empty. Raises InputErrors for the header of a table."""
    start = next((line for line in (raw.strip() for raw in file) if line), b"").decode("utf-8-sig", "replace")
    file.seek(0)
    if _is_header(start):
        what = "looks like the header of a table; say --format csv or tsv, or --format text for plain text"
        raise InputErrors([Problem(STDIN, f"'{start[:60]}' {what}")])
    return next((kind for kind, begins in _JSON_STARTS.items() if begins.match(start)), "text")


def _is_header(line: str) -> bool:
    """Whether a line names columns, one of them a text's."""
    for delimiter in ",\t;":
        cells = [cell.strip(' "') for cell in line.split(delimiter)]
        if any(cell in TEXT_FIELDS for cell in cells) and all(cell and " " not in cell for cell in cells):
            return True
    return False
