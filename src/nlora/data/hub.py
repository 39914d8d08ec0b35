"""Examples from a data set on the Hugging Face hub, through the optional package `datasets`.

hub:fancyzhx/ag_news              its split train as `train`, its split test as `test`
hub:fancyzhx/ag_news/test         one split
hub:nyu-mll/glue:sst2/validation  one configuration, one split
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nlora.data.rows import LABEL_FIELDS, ProblemList, column_problem
from nlora.errors import MissingExtraError, missing

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


def read_rows(source: str, split: str, problems: ProblemList) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row of the split, with class numbers replaced by the data set's class names.

    Raises MissingExtraError if `datasets` is not installed. A data set, configuration or split that cannot be loaded
    is added to `problems`.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{source}: {missing('datasets')}") from error
    name, config, split = parse(source, split)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problems.add(source, f"the data set could not be loaded from the hub: {reason}")
        return
    if wrong := column_problem(table.column_names):
        problems.add(source, wrong)
        return
    class_names = {
        field: feature.names
        for field, feature in table.features.items()
        if field in LABEL_FIELDS and getattr(feature, "names", None)
    }
    for number, row in enumerate(table):
        yield f"{source}[{number}]", {k: _named(v, class_names.get(k)) for k, v in row.items()}


def _named(value: Any, names: list[str] | None) -> Any:
    # -1 means "no label" on the hub. It stays a number, which is reported later.
    return names[value] if names and isinstance(value, int) and value >= 0 else value
