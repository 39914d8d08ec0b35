"""How often a router took the test examples of one task for those of another.

>>> found = Routing.of(["a", "b"], {"a": ["a", "a", "b", "a"], "b": ["b", "b"]})
>>> found.counts, round(found.accuracy, 1)
(((3, 1), (0, 2)), 83.3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class Routing(BaseModel):
    """A confusion matrix of tasks."""

    model_config = ConfigDict(frozen=True)

    tasks: tuple[str, ...] = Field(description="The tasks learned so far, in order.")
    counts: tuple[tuple[Count, ...], ...] = Field(
        description="Test examples: a row for each task that they are of, a column for each task that was guessed."
    )
    accuracy: float = Field(ge=0, le=100, description="Of all these examples, in percent.")

    @property
    def words(self) -> str:
        """`the task of 97.5 % of the test examples was guessed right`."""
        return f"the task of {self.accuracy:.1f} % of the test examples was guessed right"

    @classmethod
    def of(cls, tasks: Sequence[str], guesses: Mapping[str, Sequence[str]]) -> Routing | None:
        """From the guess for each test example of each task; None without examples of these tasks, or with one task."""
        counted = [Counter(guesses.get(task, ())) for task in tasks]
        total = sum(each.total() for each in counted)
        if len(tasks) < 2 or not total:
            return None
        right = sum(each[task] for task, each in zip(tasks, counted, strict=True))
        counts = tuple(tuple(each[guess] for guess in tasks) for each in counted)
        return cls(tasks=tuple(tasks), counts=counts, accuracy=100 * right / total)
