"""Rows of any source -> examples, with each mistake reported by file and row.

>>> problems = ProblemList("tickets.jsonl")
>>> to_examples([("tickets.jsonl:1", {"text": "It is down", "label": "netwrk"})], ("billing", "network"), problems)
()
>>> print(problems.report()[0])
tickets.jsonl:1: label 'netwrk' is not one of the task's labels: billing, network; did you mean 'network'?
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nlora.config.characters import half_problem, look_alike, told_apart
from nlora.data.task import Example
from nlora.errors import Problem, did_you_mean

TEXT_FIELDS = ("sentence", "input", "text")
LABEL_FIELDS = ("label", "output")
CHAT_FIELDS = ("messages", "conversations")
SHOWN_PER_FILE = 5


class RepeatedKey(dict[str, Any]):
    """An object with a duplicate key; as a mapping, it has the last value of each key."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.key = next(key for key in keys if keys.count(key) > 1)


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


def column_problem(fields: Sequence[str], *, labeled: bool = True) -> str | None:
    """The problem with the columns of a table; None: there is none."""
    for wanted in (TEXT_FIELDS, LABEL_FIELDS) if labeled else (TEXT_FIELDS,):
        if not any(field in fields for field in wanted):
            return chat_problem(fields) or _missing(wanted, fields)
    return None


def chat_problem(fields: Iterable[str]) -> str | None:
    """The message for a row with a conversation instead of a text; None: it has none."""
    there = set(fields)
    chat = next((field for field in CHAT_FIELDS if field in there), None)
    if chat is None or there & {*TEXT_FIELDS, *LABEL_FIELDS}:
        return None
    return (
        f"chat rows ('{chat}') are not supported; give each row a text as 'sentence' and an answer as 'label'"
    )


def to_examples(
    rows: Iterable[tuple[str, Any]], labels: Sequence[str] | None, problems: ProblemList
) -> tuple[Example, ...]:
    """Examples from rows, in their order; an example's id is the number of its row, as in the release.

    rows: (where, row) pairs; a row is a mapping with a text (`sentence`, or else `input`, or else `text`)
        and an answer (`label`, or else `output`); other fields are ignored.
    labels: the task's label words; None: free text.
    problems: gets all mistakes; rows with a mistake are left out of the result.
    """
    examples = []
    known = None if labels is None else set(labels)
    number = -1
    for number, (where, row) in enumerate(rows):
        if not isinstance(row, Mapping):
            problems.add(where, f"{_kind(row)} instead of an object with the fields sentence and label")
            continue
        if wrong := chat_problem(row):
            problems.add(where, wrong)
            return ()
        if isinstance(row, RepeatedKey):
            problems.add(where, _repeated(row))
            continue
        sentence = _field(row, TEXT_FIELDS, where, problems)
        label = _field(row, LABEL_FIELDS, where, problems)
        if sentence is None or label is None:
            continue
        if known is not None and label not in known:
            problems.add(where, outside(label, labels or ()))
            continue
        examples.append(Example(str(number), sentence, label))
    if number < 0 and not problems.count:
        problems.add(problems.file, "has no examples")
    return tuple(examples)


def to_texts(rows: Iterable[tuple[str, Any]], problems: ProblemList) -> Iterator[dict[str, Any]]:
    """The rows that have a text, with all of their fields; a bare text is short for {"sentence": text}.

    rows, problems: as in `to_examples`. An empty file is not a mistake.
    """
    for where, bare in rows:
        row = {"sentence": bare} if isinstance(bare, str) else bare
        if not isinstance(row, Mapping):
            problems.add(where, f"{_kind(row)} instead of a text or an object with the field sentence")
        elif wrong := chat_problem(row):
            problems.add(where, wrong)
            break
        elif isinstance(row, RepeatedKey):
            problems.add(where, _repeated(row))
        elif _field(row, TEXT_FIELDS, where, problems) is not None:
            # All fields are printed with the answer, so all must be valid.
            if half := half_problem(as_line(row)):
                problems.add(where, f"a field {half}")
            yield dict(row)


def text_of(row: Mapping[str, Any]) -> str:
    """The text of a row, which must have one."""
    return str(next(row[field] for field in TEXT_FIELDS if field in row))


def as_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; values that JSON does not have (a date in Parquet) become text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def outside(label: str, labels: Sequence[str]) -> str:
    """The message for a label outside of the task's label set."""
    if twin := next((word for word in labels if look_alike(word, label)), None):
        return f"label '{label}' only looks like the task's label '{twin}': {told_apart(label, twin)}"
    shown = ", ".join(labels[:8]) + (f", ... ({len(labels)} in all)" if len(labels) > 8 else "")
    return f"label '{label}' is not one of the task's labels: {shown}{did_you_mean(label, labels)}"


def _repeated(row: RepeatedKey) -> str:
    return f"duplicate key '{row.key}'; keep one of them"


def _field(row: Mapping[str, Any], names: Sequence[str], where: str, problems: ProblemList) -> str | None:
    name = next((n for n in names if n in row), None)
    if name is None:
        problems.add(where, _missing(names, list(row)))
        return None
    value = row[name]
    if not isinstance(value, str):
        way_out = ""
        if isinstance(value, int | float) and name in LABEL_FIELDS:
            way_out = "; write the label as text, preferably as a meaningful word"
        problems.add(where, f"{name} is {_kind(value)} instead of text{way_out}")
        return None
    if not value.strip():
        problems.add(where, f"{name} is empty")
        return None
    if half := half_problem(value):
        problems.add(where, f"{name} {half}")
        return None
    return value


def _missing(wanted: Sequence[str], there: Sequence[str]) -> str:
    others = " or ".join(wanted[1:])
    return f"no field '{wanted[0]}' (or {others}); the fields are: {', '.join(map(str, there)) or 'none'}"


def _kind(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"
