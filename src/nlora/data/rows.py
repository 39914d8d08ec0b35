"""Rows of any source -> examples, with each mistake reported by file and row.

>>> problems = ProblemList("tickets.jsonl")
>>> to_examples([("tickets.jsonl:1", {"text": "It is down", "label": "netwrk"})], ("billing", "network"), problems)
()
>>> print(problems.report()[0])
tickets.jsonl:1: label 'netwrk' is not one of the task's labels: billing, network; did you mean 'network'?
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nlora.config.characters import half_problem, look_alike, told_apart
from nlora.data.field_error import FieldError, RepeatedKey, kind_of
from nlora.data.fields import Fields
from nlora.data.task import Example
from nlora.errors import Problem, did_you_mean

T = TypeVar("T")
SHOWN_PER_FILE = 5


NARROW = {"float16": "float16", "float32": "float32", "halffloat": "float16", "float": "float32"}
"""Types of numbers that Python has only wider, by their names in data sets of `datasets`, and in Arrow."""


def shortest(row: Mapping[str, Any], narrow: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with the numbers of narrow columns as short as they were written. narrow: each column's type.

    A column may have lists of such numbers.

    >>> shortest({"label": 3.799999952316284}, {"label": "float32"})
    {'label': 3.8}
    """
    if not narrow:
        return row
    import numpy as np

    def short(value: Any, kind: str) -> Any:
        if isinstance(value, list):
            return [short(one, kind) for one in value]
        return float(str(np.dtype(kind).type(value))) if isinstance(value, float) else value

    return {**row, **{name: short(row[name], kind) for name, kind in narrow.items()}}


class ProblemList:
    """The problems of one file: the first few in full, and the number of the rest."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self._shown: list[Problem] = []

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if len(self._shown) < SHOWN_PER_FILE:
            self._shown.append(Problem(where, what))

    def report(self) -> list[Problem]:
        """At most SHOWN_PER_FILE problems, and one more with the number of the rest."""
        rest = self.count - len(self._shown)
        if not rest:
            return list(self._shown)
        more = "one more row has" if rest == 1 else f"{rest} more rows have"
        return [*self._shown, Problem(self.file, f"{more} problems")]


def to_examples(
    rows: Iterable[tuple[str, Any]],
    labels: Sequence[str] | None,
    problems: ProblemList,
    fields: Fields = Fields(),  # noqa: B008 (immutable)
) -> tuple[Example, ...]:
    """Examples from rows, in their order; an example's id is the number of its row, as in the release.

    rows: (where, row) pairs; a row is a mapping with the fields of text and answer; others are ignored.
    labels: the task's label words; None: free text.
    problems: gets all mistakes; rows with a mistake are left out of the result.
    """
    examples = []
    known = None if labels is None else set(labels)
    number = -1
    for number, (where, row) in enumerate(rows):
        if not isinstance(row, Mapping):
            problems.add(where, f"{kind_of(row)} instead of an object with the fields sentence and label")
            continue
        if isinstance(row, RepeatedKey):
            problems.add(where, row.what)
            continue
        if number == 0:
            if wrong := fields.problem(list(row)):  # most likely a problem of all rows: reported once
                problems.add(where, wrong)
                return ()
            fields = replace(fields, chat=fields.is_chat(row))
        sentence = _read(fields.text_of, row, where, problems)
        if sentence is None and fields.chat:  # a mistake in a conversation is one of the answer, too
            continue
        answers = _read(fields.answers_of, row, where, problems)
        if sentence is None or answers is None:
            continue
        if known is not None and (unknown := next((word for word in answers if word not in known), None)):
            problems.add(where, outside(unknown, labels or ()))
            continue
        examples.append(Example(str(number), sentence, answers[0], answers[1:], chat=bool(fields.chat)))
    if number < 0 and not problems.count:
        problems.add(problems.file, "has no examples")
    return tuple(examples)


def to_texts(
    rows: Iterable[tuple[str, Any]],
    problems: ProblemList,
    fields: Fields = Fields(),  # noqa: B008 (immutable)
    added: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """The rows that have a text, with all of their fields; a bare text is short for {"sentence": text}.

    rows, problems: as in `to_examples`. An empty file is not a mistake. added: fields that the rows are to get.
    """
    for number, (where, bare) in enumerate(rows):
        row = fields.row_of(bare) if isinstance(bare, str) else bare
        if not isinstance(row, Mapping):
            wanted = fields.messages[0] if fields.chat else " and ".join(fields.places or fields.text[:1])
            what = f"an object with the field{'s' if len(fields.places) > 1 else ''} {wanted}"
            either = what if isinstance(bare, str) else f"a text or {what}"
            problems.add(where, f"{'a text' if isinstance(bare, str) else kind_of(bare)} instead of {either}")
        elif isinstance(row, RepeatedKey):
            problems.add(where, row.what)
        elif number == 0 and (wrong := fields.problem(list(row), labeled=False)):
            problems.add(where, wrong)
            break
        elif taken := [field for field in added if field in row]:
            problems.add(where, f"has a field {taken[0]} already, which the answer would replace; rename it")
            break
        elif _read(fields.text_of, row, where, problems) is not None:
            # All fields are printed with the answer, so all must be valid.
            try:
                if half := half_problem(as_line(row)):
                    problems.add(where, f"a field {half}")
            except RecursionError:
                problems.add(where, "a field is nested too deeply")
            fields = replace(fields, chat=fields.is_chat(row))  # the other rows have to be of the same kind
            yield dict(row)


def as_line(row: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """A row as one line of JSON. Of what JSON does not have, a date in Parquet becomes text, and NaN null."""
    return json.dumps(_finite(row), ensure_ascii=ascii_only, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def outside(label: str, labels: Sequence[str]) -> str:
    """The message for a label outside of the task's label set."""
    if twin := next((word for word in labels if look_alike(word, label)), None):
        return f"label '{label}' only looks like the task's label '{twin}': {told_apart(label, twin)}"
    shown = ", ".join(labels[:8]) + (f", ... ({len(labels)} in all)" if len(labels) > 8 else "")
    hint = "; label_names gives such values their words" if label.lstrip("-").isdecimal() else ""
    return f"label '{label}' is not one of the task's labels: {shown}{did_you_mean(label, labels) or hint}"


def _read(
    field_of: Callable[[Mapping[str, Any]], T], row: Mapping[str, Any], where: str, problems: ProblemList
) -> T | None:
    try:
        return field_of(row)
    except FieldError as error:
        problems.add(where, str(error))
        return None
