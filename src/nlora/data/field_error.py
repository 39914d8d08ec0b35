"""What is said about a field of a row that is of no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


class FieldError(ValueError):
    """A field of a row that is missing or of no use. The message says what is wrong, but not in which row."""


class RepeatedKey(dict[str, Any]):
    """An object with a duplicate key; as a mapping, it has the last value of each key. what: the mistake, in words."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.what = f"duplicate key '{next(key for key, n in counts.items() if n > 1)}'; keep one of them"


def kind_of(value: Any) -> str:
    """What a value is, for a message: `the number 12`, `a list`."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float | Decimal):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"
