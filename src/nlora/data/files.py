"""People's own examples: JSONL, JSON, CSV, TSV and Parquet files, and data sets of the hub.

    examples, problems = read_examples("tickets/train.jsonl", labels=("billing", "network"))
    examples[0]                     # Example(id='0', sentence='My invoice is wrong', label='billing')
    problems                        # [Problem('tickets/train.jsonl:7', "label 'Billing' is not one of ...")]

Every row needs a text (`sentence`, or else `input`, or else `text`) and a `label` (or else `output`); other
fields are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nlora.data import hub
from nlora.data.readers import FORMATS, READERS, Form, unknown_format
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
    key: Key = (),
) -> tuple[tuple[Example, ...], list[Problem]]:
    """The examples of a file or hub data set, and what is wrong with it: at most five problems and a count.

    source: a path, or `hub:<data set>[:config][/split]` (needs `nlora[hub]`, else MissingExtraError).
    labels: the task's label words; null: free text, any label is right.
    folders: where a relative path is looked for, in this order.
    split: which split of a hub data set, where the source does not say.
    quoting: whether cells of CSV and TSV may stand in quotes; None: in CSV only.
    key: the configuration's key that names the source; problems of the source as a whole bear it.
    """
    if source.startswith(hub.PREFIX):
        problems = ProblemList(source)
        return to_examples(hub.read_rows(source, split, problems), labels, problems), problems.report()
    path = find(source, folders)
    if path is None:
        return (), [Problem("" if key else source, _not_found(source, folders), key=key)]
    problems = ProblemList(str(path))
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        return (), [Problem("" if key else str(path), unknown_format(path, FORMATS), key=key)]
    try:
        with path.open("rb") as file:
            rows = READERS[kind](file, Form(quoting=quoting), problems)
            examples = to_examples(rows, labels, problems)
    except OSError as error:
        problems.add(str(path), f"cannot be read ({error.strerror or error})")
        examples = ()
    return examples, problems.report()


def find(source: str, folders: Sequence[Path]) -> Path | None:
    """The first file that the source names, `~` understood, relative to one of the folders."""
    path = Path(source).expanduser()
    candidates = (folder / path for folder in folders)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _not_found(source: str, folders: Sequence[Path]) -> str:
    path = Path(source).expanduser()
    if any((folder / path).is_dir() for folder in folders):
        return f"{source} is a folder; name a file in it"
    looked = " and ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    return f"no such file: {source}" + ("" if path.is_absolute() else f" (looked in {looked})")
