"""Examples from a user's files (JSONL, JSON, CSV, TSV, Parquet, Arrow), or from a data set on the Hugging Face hub.

`nlora.data.fields` says which fields of a row are its text and its answer; other fields are ignored.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nlora.config.paths import expanded, is_file, is_folder, looked_in
from nlora.data import hub
from nlora.data.fields import Fields
from nlora.data.readers import FORMATS, READERS, Form, open_file, suffix_of, unknown_format
from nlora.data.rows import ProblemList, to_examples
from nlora.data.task import Example
from nlora.errors import Key, Problem


def read_examples(
    source: str,
    *,
    labels: Sequence[str] | None,
    folders: Sequence[Path] = (Path(),),
    split: str = "train",
    quoting: bool | None = None,
    fields: Fields = Fields(),  # noqa: B008 (immutable)
    key: Key = (),
) -> tuple[tuple[Example, ...], list[Problem]]:
    """The examples of a file or hub data set, and its problems: the first five, and the number of all others.

    source: a path, a pattern of paths (`data/*.jsonl`, read in sorted order), a folder that `datasets` saved, or
        `hub:<data set>[:config][/split]`; the last two raise MissingExtraError if `datasets` is not installed.
    labels: the task's label words; None: free text, where any label is allowed.
    folders: where to look for a relative path, in this order.
    split: the split of a hub data set or a folder, if the source names none.
    quoting: whether CSV and TSV cells may be quoted; None: in CSV only.
    fields: where a row's text and answer are.
    key: the configuration key that names the source, for problems of the source as a whole.
    """
    if source.startswith(hub.PREFIX):
        problems = ProblemList(source)
        rows = hub.read_rows(source, split, problems, fields)
        return to_examples(rows, labels, problems, fields), problems.report()
    paths = find(source, folders)
    if not paths:
        return (), [Problem("" if key else source, _not_found(source, folders), key=key)]
    examples: list[Example] = []
    found: list[Problem] = []
    for path in paths:
        kind = FORMATS.get(suffix_of(path))
        if kind is None and not path.is_dir():
            found.append(Problem("" if key else str(path), unknown_format(path, FORMATS), key=key))
            continue
        problems = ProblemList(str(path))
        if kind is None or path.is_dir():
            examples += to_examples(hub.read_folder(path, split, problems, fields), labels, problems, fields)
        else:
            form = Form(quoting=quoting, fields=fields)
            try:
                with open_file(path) as file:
                    examples += to_examples(READERS[kind](file, form, problems), labels, problems, fields)
            except OSError as error:
                problems.add(str(path), f"cannot be read ({error.strerror or error})")
        found += problems.report()
    if len(paths) > 1:  # an id is unique within its split
        examples = [replace(example, id=str(i)) for i, example in enumerate(examples)]
    return tuple(examples), found


def find(source: str, folders: Sequence[Path]) -> list[Path]:
    """The file, the saved folder, or the files of a pattern, in the first of the folders that has any.

    A relative path is relative to the folders; `~` is expanded.
    """
    path = expanded(source)
    for folder in folders:
        there = folder / path
        if is_file(there) or (is_folder(there) and hub.is_saved(there)):
            return [there]
        if glob.has_magic(source):
            pattern = str(path if path.is_absolute() else Path(glob.escape(str(folder))) / path)
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
            if files := [file for file in map(Path, matches) if file.is_file()]:
                return files
    return []


def _not_found(source: str, folders: Sequence[Path]) -> str:
    path = expanded(source)
    if any(is_folder(folder / path) for folder in folders):
        return f"{source} is a folder; name a file in it, or several as {path}/*.jsonl"
    what = "no file matches" if glob.has_magic(source) else "no such file:"
    return f"{what} {source}{looked_in(folders, source)}"
