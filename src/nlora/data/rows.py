"""Rows of any source -> examples, with every mistake named by file and row.

Readers (JSON, CSV, Parquet, hub) only produce `(where, row)` pairs; what a row must hold is said here once.

    problems = ProblemList("tickets.jsonl")
    examples = to_examples([("tickets.jsonl:1", {"sentence": "It is down", "label": "network"})],
                           labels=("billing", "network"), problems=problems)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nlora.config.characters import half_problem, look_alike, told_apart
from nlora.data.task import Example
from nlora.errors import Problem, did_you_mean

TEXT_FIELDS = ("sentence", "input", "text")
LABEL_FIELDS = ("label", "output")
CHAT_FIELDS = ("messages", "conversations")
SHOWN_PER_FILE = 5


class RepeatedKey(dict[str, Any]):
    """An object that says one of its keys twice; as a mapping, each with its last value."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.key = next(key for key in keys if keys.count(key) > 1)


class ProblemList:
    """The mistakes of one file: the first few in full, the rest counted."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self._shown: list[Problem] = []

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if len(self._shown) < SHOWN_PER_FILE:
            self._shown.append(Problem(where, what))

    def report(self) -> list[Problem]:
        """At most SHOWN_PER_FILE problems and, where there are more, one that counts them."""
        rest = self.count - len(self._shown)
        if not rest:
            return list(self._shown)
        more = "one more row has" if rest == 1 else f"{rest} more rows have"
        return [*self._shown, Problem(self.file, f"{more} problems")]


def column_problem(fields: Sequence[str], *, labeled: bool = True) -> str | None:
    """What is wrong with the columns of a table, whose every row has the same fields; None: nothing."""
    for wanted in (TEXT_FIELDS, LABEL_FIELDS) if labeled else (TEXT_FIELDS,):
        if not any(field in fields for field in wanted):
            return chat_problem(fields) or _missing(wanted, fields)
    return None


def chat_problem(fields: Iterable[str]) -> str | None:
    """What to say of a row that holds a conversation in place of a text; None: it does not."""
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
    """Examples of the rows, in their order; the id is the row's number, as released.

    rows: (where, row) pairs; a row is a mapping with a text (`sentence`, or else `input`, or else `text`)
        and a `label` (or else `output`); other fields are ignored.
    labels: the task's label words, or None for free text.
    problems: takes every mistake; rows with one are left out of the result.
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
        problems.add(problems.file, "no examples in it")
    return tuple(examples)


def to_texts(rows: Iterable[tuple[str, Any]], problems: ProblemList) -> list[dict[str, Any]]:
    """The rows that hold a text, with all of their fields; a bare text is short for {"sentence": text}.

    rows, problems: as of `to_examples`. No row at all is no mistake.
    """
    texts = []
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
            # The other fields are printed again with the answer.
            if half := half_problem(as_line(row)):
                problems.add(where, f"a field {half}")
            texts.append(dict(row))
    return texts


def text_of(row: Mapping[str, Any]) -> str:
    """The text of a row that has one."""
    return str(next(row[field] for field in TEXT_FIELDS if field in row))


def as_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; what JSON does not know (a date of Parquet) as text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def outside(label: str, labels: Sequence[str]) -> str:
    """The message for a label that is not one of the task's."""
    if twin := next((word for word in labels if look_alike(word, label)), None):
        return f"label '{label}' only looks like the task's label '{twin}': {told_apart(label, twin)}"
    shown = ", ".join(labels[:8]) + (f", ... ({len(labels)} in all)" if len(labels) > 8 else "")
    return f"label '{label}' is not one of the task's labels: {shown}{did_you_mean(label, labels)}"


def _repeated(row: RepeatedKey) -> str:
    return f"the key '{row.key}' is there twice; keep one of them"


def _field(row: Mapping[str, Any], names: Sequence[str], where: str, problems: ProblemList) -> str | None:
    name = next((n for n in names if n in row), None)
    if name is None:
        problems.add(where, _missing(names, list(row)))
        return None
    value = row[name]
    if not isinstance(value, str):
        way_out = ""
        if isinstance(value, int | float) and name in LABEL_FIELDS:
            way_out = "; write the label as text, best as a word that says what it means"
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
