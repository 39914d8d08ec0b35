"""Precision, recall and F1 of each label, and macro-F1.

>>> pairs = [("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", None)]
>>> counts = count_labels(pairs)
>>> counts["cat"].precision, counts["cat"].recall, round(counts["cat"].f1, 4)
(1.0, 0.5, 0.6667)
>>> round(macro_f1(pairs), 4)
0.5833

A pair is the label that an example counts for and the label that was answered. None is an answer that is no label: it
lowers the recall of the example's label, but nothing's precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Pair = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How often a label was answered, and rightly. support: examples that count for it."""

    support: int
    answered: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of its answers that are right; None if it was never answered."""
        return self.right / self.answered if self.answered else None

    @property
    def recall(self) -> float | None:
        """Share of its examples that are answered rightly; None if it has none."""
        return self.right / self.support if self.support else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None for a label that does not occur at all."""
        occurs = self.support + self.answered
        return 2 * self.right / occurs if occurs else None


def count_labels(pairs: Sequence[Pair], labels: Iterable[str] = ()) -> dict[str, LabelCounts]:
    """The counts of these labels, in their order, and of all others that occur."""
    support = Counter(reference for reference, _ in pairs)
    answered = Counter(label for _, label in pairs if label is not None)
    right = Counter(label for reference, label in pairs if reference == label)
    return {
        label: LabelCounts(support[label], answered[label], right[label])
        for label in dict.fromkeys([*labels, *support, *answered])
    }


def macro_f1(pairs: Sequence[Pair]) -> float:
    """Mean F1 over the labels that occur, from 0 to 1, as scikit-learn's `f1_score(average="macro")`.

    Answers that are no label count as wrong, but are no labels to average over. 0 if there are no pairs.
    """
    scores = [counts.f1 for counts in count_labels(pairs).values() if counts.f1 is not None]
    return math.fsum(scores) / len(scores) if scores else 0.0
