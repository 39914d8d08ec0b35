"""Examples from a user's JSONL, JSON, CSV, TSV or Parquet file, or from a data set on the Hugging Face hub.

Every row needs a text (`sentence`, or else `input`, or else `text`) and an answer (`label`, or else `output`); other
fields are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nlora.data import hub
from nlora.data.fields import Fields
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
    fields: Fields = Fields(),  # noqa: B008 (immutable)
    key: Key = (),
) -> tuple[tuple[Example, ...], list[Problem]]:
    """The examples of a file or hub data set, and its problems: the first five, and the number of all others.

    source: a path, or `hub:<data set>[:config][/split]` (needs `nlora[hub]`; raises MissingExtraError without).
    labels: the task's label words; None: free text, where any label is allowed.
    folders: where to look for a relative path, in this order.
    split: the split of a hub data set, if the source names none.
    quoting: whether CSV and TSV cells may be quoted; None: in CSV only.
    fields: where a row's text and answer are.
    key: the configuration key that names the source, for problems of the source as a whole.
    """
    if source.startswith(hub.PREFIX):
        problems = ProblemList(source)
        rows = hub.read_rows(source, split, problems, fields)
        return to_examples(rows, labels, problems, fields), problems.report()
    path = find(source, folders)
    if path is None:
        return (), [Problem("" if key else source, _not_found(source, folders), key=key)]
    problems = ProblemList(str(path))
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        return (), [Problem("" if key else str(path), unknown_format(path, FORMATS), key=key)]
    try:
        with path.open("rb") as file:
            form = Form(quoting=quoting, fields=fields)
            examples = to_examples(READERS[kind](file, form, problems), labels, problems, fields)
    except OSError as error:
        problems.add(str(path), f"cannot be read ({error.strerror or error})")
        examples = ()
    return examples, problems.report()


def find(source: str, folders: Sequence[Path]) -> Path | None:
    """The first existing file of that name, relative to one of the folders; `~` is expanded."""
    path = Path(source).expanduser()
    candidates = (folder / path for folder in folders)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _not_found(source: str, folders: Sequence[Path]) -> str:
    path = Path(source).expanduser()
    if any((folder / path).is_dir() for folder in folders):
        return f"{source} is a folder; name a file in it"
    looked = " and ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    return f"no such file: {source}" + ("" if path.is_absolute() else f" (looked in {looked})")
