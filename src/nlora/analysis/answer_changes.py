"""Which answers changed between two models, and whether a task lost more than chance explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlora.evaluation.answer import Answer, percent
from nlora.evaluation.paired_test import sign_test
from nlora.runs.answers import TextKey

Answers = Mapping[TextKey, Answer]
_BY_LABEL = ("exact_match", "macro_f1")
"""Metrics by which changes are listed for each label."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes between two models' answers to the same examples.

    count: examples that both answered. worse, better: how many of them lost or gained score.
    """

    count: int
    worse: int
    better: int

    @property
    def p_value(self) -> float:
        """Two-sided exact p-value of the hypothesis that worse and better are equally likely."""
        return sign_test(self.worse, self.better)


@dataclass(frozen=True, slots=True)
class TaskChanges:
    """One task under two models. before, after: the scores in percent, by its metric. labels: the changes by label."""

    task: str
    metric: str
    before: float
    after: float
    changes: Changes
    labels: Mapping[str, Changes]

    @property
    def drop(self) -> float:
        """How many percentage points the score fell; negative if it rose."""
        return self.before - self.after


def task_changes(task: str, metric: str, before: Answers, after: Answers) -> TaskChanges:
    """Compare the answers of two models on the examples that both answered, by a metric.

    Scores are by the metric. An example is worse or better by its own score (`Answer.score`), which for macro-F1 is
    whether it is right.

    >>> right, wrong = Answer("a fox", "animal", "animal"), Answer("a fox", "animal", "plant")
    >>> before = {("a fox", "animal", i): right for i in range(4)}
    >>> after = {**before, ("a fox", "animal", 0): wrong}
    >>> found = task_changes("tickets", "exact_match", before, after)
    >>> found.drop, found.changes.worse, found.changes.p_value
    (25.0, 1, 1.0)
    """
    common = [key for key in before if key in after]
    if not common:
        raise ValueError(f"task {task}: no example was answered by both")
    scores = [(before[key].score(metric), after[key].score(metric), before[key].label) for key in common]
    labels: dict[str, list[tuple[float, float]]] = {}
    for one, other, label in scores:
        labels.setdefault(label, []).append((one, other))
    return TaskChanges(
        task=task,
        metric=metric,
        before=percent([before[key] for key in common], metric),
        after=percent([after[key] for key in common], metric),
        changes=_changes([(one, other) for one, other, _ in scores]),
        labels={label: _changes(pairs) for label, pairs in labels.items()} if metric in _BY_LABEL else {},
    )


def _changes(pairs: Sequence[tuple[float, float]]) -> Changes:
    worse = sum(other < one for one, other in pairs)
    better = sum(other > one for one, other in pairs)
    return Changes(len(pairs), worse, better)
