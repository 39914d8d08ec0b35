"""Rows of a data set on the Hugging Face hub, or in a folder, through the optional package `datasets`.

hub:fancyzhx/ag_news              its split train as `train`, its split test as `test`
hub:fancyzhx/ag_news/test         one split
hub:nyu-mll/glue:sst2/validation  one configuration, one split
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlora.data.fields import Fields
from nlora.data.rows import NARROW, ProblemList, shortest
from nlora.errors import MissingExtraError, first_line, missing

PREFIX = "hub:"
_SPLITS = frozenset({"train", "test", "validation"})


def parse(source: str, split: str) -> tuple[str, str | None, str]:
    """(data set, configuration or None, split) of `hub:name[:config][/split]`. split: the default.

    A name may contain a slash. In `hub:a/b`, b is a split only if it is train, test or validation.

    >>> parse("hub:nyu-mll/glue:sst2/validation", "train")
    ('nyu-mll/glue', 'sst2', 'validation')
    """
    rest = source.removeprefix(PREFIX)
    name, colon, config = rest.partition(":")
    if colon:
        config, _, named = config.partition("/")
        return name, config or None, named or split
    pieces = name.split("/")
    if len(pieces) == 3 or (len(pieces) == 2 and pieces[1] in _SPLITS):
        return "/".join(pieces[:-1]), None, pieces[-1]
    return name, None, split


def read_rows(source: str, split: str, problems: ProblemList, fields: Fields) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row of the split, with class numbers replaced by the data set's class names.

    Raises MissingExtraError if `datasets` is not installed. A data set, configuration or split that cannot be loaded
    is added to `problems`.
    """
    datasets = _datasets(source)
    name, config, split = parse(source, split)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        problems.add(source, f"the data set could not be loaded from the hub: {_reason(error)}")
        return
    yield from table_rows(table, source, problems, fields)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_folder(folder: Path, split: str, problems: ProblemList, fields: Fields) -> Iterator[tuple[str, Any]]:
    """`read_rows` for a folder that `save_to_disk` wrote: of one split, or of several."""
    datasets = _datasets(str(folder))
    try:
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        problems.add(str(folder), f"the folder could not be loaded by datasets: {_reason(error)}")
        return
    if isinstance(table, dict):
        if split not in table:
            what = f"has no split '{split}'; name one of its splits: "
            problems.add(str(folder), what + ", ".join(f"{folder.name}/{name}" for name in table))
            return
        table = table[split]
    yield from table_rows(table, str(folder), problems, fields)


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{source}: {missing('datasets')}") from error
    return datasets


def _reason(error: BaseException) -> str:
    """The first line of the error; of what caused it, where the data set itself could not be built."""
    cause = error.__cause__ if "while generating the dataset" in str(error) else None
    return first_line(cause or error)


def table_rows(table: Any, source: str, problems: ProblemList, fields: Fields) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row of a `datasets.Dataset`, as `read_rows`."""
    if wrong := fields.problem(table.column_names):
        problems.add(source, wrong)
        return
    used = [name for name in table.column_names if name in fields.used]  # others may be sounds
    table = table.select_columns(used)
    # A list has the names of its elements.
    features = {field: getattr(feature, "feature", feature) for field, feature in table.features.items()}
    class_names = {
        field: names
        for field, feature in features.items()
        if (names := getattr(feature, "names", None)) and not _by_number(names, field, fields)
    }
    values = {field: getattr(feature, "feature", feature) for field, feature in features.items()}  # of lists
    narrow = {field: dtype for field, f in values.items() if (dtype := getattr(f, "dtype", "")) in NARROW}
    for number, row in enumerate(table):
        where = f"{source}[{number}]"
        if missing_label := next((f for f in class_names if f in fields.label and row[f] == -1), None):
            problems.add(where, f"{missing_label} is -1, which means that the row has no label")
            continue
        named = {field: _named(row[field], names) for field, names in class_names.items()}
        yield where, {**shortest(row, narrow), **named}


def _by_number(names: Sequence[str], field: str, fields: Fields) -> bool:
    """Whether the task's `label_names` are for the class numbers, and not for the names that the data set has."""
    given = (fields.label_names or {}).keys() if field in fields.label else set()
    return not given >= set(names) and given >= {str(number) for number in range(len(names))}


def _named(value: Any, names: Sequence[str]) -> Any:
    """A class number as its name, and each of a list; anything else as it is."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and value >= 0 else value
