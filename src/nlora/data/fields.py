"""Which fields of a row make an example: fields of known names, columns that the task names, or a template.

>>> fields = Fields(template="{question} ({lang})", label_names={"0": "no", "1": "yes"})
>>> row = {"question": "Is it down?", "lang": "en", "label": 1}
>>> fields.text_of(row), fields.answers_of(row)
('Is it down? (en)', ('yes',))
>>> row = {"messages": [{"role": "user", "content": "Is it down?"}, {"role": "assistant", "content": "No."}]}
>>> Fields().text_of(row), Fields().answers_of(row)
('user: Is it down?', ('No.',))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from nlora.config.characters import half_problem
from nlora.config.task_source import TaskSource, template_pieces
from nlora.data import chat
from nlora.data.field_error import FieldError, kind_of

TEXT_FIELDS = ("sentence", "input", "text")
LABEL_FIELDS = ("label", "output")
CHAT_FIELDS = ("messages", "conversations")


@dataclass(frozen=True)
class Fields:
    """How to make text and answer of a row.

    text: the names of the text's field; the first that a row has counts. label: the same for the answer.
    template: the text with `{column}` places; None: the text is a field.
    label_names: the label word of each value; None: the value is the label.
    messages: the names of the field with a conversation, which has text and answer in it.
    chat: whether rows are conversations; None: those that have one, and no text with an answer.
    """

    text: tuple[str, ...] = TEXT_FIELDS
    label: tuple[str, ...] = LABEL_FIELDS
    template: str | None = None
    label_names: Mapping[str, str] | None = None
    messages: tuple[str, ...] = CHAT_FIELDS
    chat: bool | None = None

    @classmethod
    def of(cls, source: TaskSource) -> Fields:
        """The fields of a task's files."""
        text, label, messages = source.columns.text, source.columns.label, source.columns.messages
        is_plain = any((text, label, source.template, source.label_names))
        return cls(
            TEXT_FIELDS if text is None else (text,),
            LABEL_FIELDS if label is None else (label,),
            source.template,
            source.label_names,
            CHAT_FIELDS if messages is None else (messages,),
            True if messages is not None else False if is_plain else None,
        )

    def is_chat(self, there: Iterable[str]) -> bool:
        """Whether a row with these fields is a conversation."""
        if self.chat is not None:
            return self.chat
        found = set(there)
        return not found.isdisjoint(self.messages) and (
            found.isdisjoint(self.text) or found.isdisjoint(self.label)
        )

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The columns that the template names; empty without a template."""
        return tuple(dict.fromkeys(column for _, column in self._pieces if column is not None))

    @cached_property
    def used(self) -> frozenset[str]:
        """All columns that may be read for text and answer."""
        return frozenset((*self.text, *self.label, *self.messages, *self.places))

    @cached_property
    def _pieces(self) -> tuple[tuple[str, str | None], ...]:
        return template_pieces(self.template or "")

    def problem(self, there: Sequence[str], *, labeled: bool = True) -> str | None:
        """The problem with the columns of a table; None: there is none."""
        if self.is_chat(there):
            return _missing(self.messages, there) if set(there).isdisjoint(self.messages) else None
        for place in self.places:
            if place not in there:
                return _missing((place,), there, "column")
        for wanted in ((self.text,) if self.template is None else ()) + ((self.label,) if labeled else ()):
            if not any(name in there for name in wanted):
                key = {TEXT_FIELDS: "text", LABEL_FIELDS: "label"}.get(wanted)
                hint = f"; the task can name another: columns: {{{key}: ...}}" if key and labeled else ""
                return _missing(wanted, there) + hint
        return None

    def row_of(self, text: str) -> dict[str, Any] | None:
        """The row for a bare text, or for a conversation of it; None if a template needs several columns."""
        if self.chat:
            return {self.messages[0]: [{"role": "user", "content": text}]}
        names = self.places if self.template is not None else self.text[:1]
        return {names[0]: text} if len(names) == 1 else None

    def text_of(self, row: Mapping[str, Any]) -> str:
        """The text of a row; of a conversation, what comes before the assistant's last turn. Raises FieldError."""
        if self.is_chat(row):
            messages = chat.conversation(row, self._messages_in(row))
            return chat.as_text(messages[:-1] if messages[-1].role == "assistant" else messages)
        if self.template is None:
            name, value = _find(row, self.text)
            return _checked(name, value)
        values = {place: _cell(place, row) for place in self.places}
        if not any(value.strip() for value in values.values()):
            raise FieldError(f"{' and '.join(values)} {'are' if len(values) > 1 else 'is'} empty")
        return "".join(text + ("" if column is None else values[column]) for text, column in self._pieces)

    def answers_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The accepted answers of a row, without repetitions; the first is trained on. Raises FieldError."""
        if self.is_chat(row):
            return (chat.conversation(row, self._messages_in(row), answered=True)[-1].content,)
        name, value = _find(row, self.label)
        if not isinstance(value, list | tuple):
            return (self._answer(name, value),)
        if not value:
            raise FieldError(f"{name} is an empty list; it needs at least one answer")
        return tuple(dict.fromkeys(self._answer(f"{name}[{i}]", one) for i, one in enumerate(value)))

    def _answer(self, name: str, value: Any) -> str:
        """An answer in a field of that name; a number or truth value becomes text."""
        word = _checked(name, _as_text(value))
        if self.label_names is None:
            return word
        if word not in self.label_names:
            known = ", ".join(self.label_names)
            raise FieldError(f"{name} '{word}' has no name; label_names has names for {known}")
        return self.label_names[word]

    def _messages_in(self, row: Mapping[str, Any]) -> str:
        name = next((name for name in self.messages if name in row), None)
        if name is None:
            raise FieldError(
                f"{_missing(self.messages, list(row))}; all rows of a chat task are conversations"
            )
        return name


def _find(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise FieldError(_missing(names, list(row)))
    return name, row[name]


def _cell(place: str, row: Mapping[str, Any]) -> str:
    """A column's text in a template. It may be blank or null, as the input of many instruction data sets is."""
    if place not in row:
        raise FieldError(_missing((place,), list(row), "column"))
    value = "" if row[place] is None else _as_text(row[place])
    return "" if isinstance(value, str) and not value.strip() else _checked(place, value)


def _checked(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(f"{name} is {kind_of(value)} instead of text")
    if not value.strip():
        raise FieldError(f"{name} is empty")
    if half := half_problem(value):
        raise FieldError(f"{name} {half}")
    return value


def _as_text(value: Any) -> Any:
    """A finite number or a truth value as text, and a whole number without a fraction: 1.0 is 1."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal) and value.is_finite():  # a column of a database, in Parquet
        return str(int(value)) if value == value.to_integral_value() else format(value.normalize(), "f")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if is_number else value


def _missing(wanted: Sequence[str], there: Sequence[str], what: str = "field") -> str:
    others = f" (or {' or '.join(wanted[1:])})" if wanted[1:] else ""
    return f"no {what} '{wanted[0]}'{others}; the {what}s are: {', '.join(map(str, there)) or 'none'}"
