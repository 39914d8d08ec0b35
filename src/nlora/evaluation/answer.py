"""One answer of a model, and its score against the accepted answers; the score of a task.

>>> answers = [Answer("Capital of France?", "Paris", text, others=("the city of Paris",)) for text in ("paris", "Rome")]
>>> [answer.is_right for answer in answers], percent(answers, "exact_match")
([True, False], 50.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlora.config.outside_code import one_line
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Problem, RunError
from nlora.evaluation.choices import METRIC_NAMES, Metric
from nlora.evaluation.edit_metrics import edit_similarity, sari
from nlora.evaluation.per_label import LabelCounts, Pair, count_labels, macro_f1
from nlora.evaluation.text_metrics import exact_match, normalize, rouge_l, told_apart

_SHOWN = 60
"""Characters of a value in a message."""
_ROUNDING = 1e-6
"""How far a function's score may be outside of 0 to 1, as a quotient of sums in float32 may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered to one example.

    exact: compare with the accepted answers without normalization.
    others: accepted answers besides the label.
    is_outside: whether the task has labels, and this is none of them.
    own_score: 0 to 1, by the task's own function; None if it has none.
    """

    text: str
    label: str
    prediction: str
    exact: bool = False
    others: tuple[str, ...] = ()
    is_outside: bool = False
    own_score: float | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        """All accepted answers, the label first."""
        return (self.label, *self.others)

    @property
    def is_right(self) -> bool:
        """Whether it matches an accepted answer."""
        if self.exact:
            return self.prediction in self.accepted
        return any(exact_match(self.prediction, answer) for answer in self.accepted)

    def score(self, metric: Metric) -> float:
        """0 to 1. macro_f1 is no mean over examples; here it is whether the answer is right.

        Raises RunError for a function of the user's own whose score is not known.
        """
        if metric == "rougeL" and not self.exact:
            return max(rouge_l(self.prediction, answer) for answer in self.accepted)
        if metric == "edit_similarity":
            # An answer has no white space around it (`Evaluator`), as code in a reference may have.
            return max(edit_similarity(self.prediction, answer.strip()) for answer in self.accepted)
        if metric == "sari":
            return sari(self.text, self.prediction, self.accepted)
        if metric in METRIC_NAMES:
            return float(self.is_right)
        if self.own_score is None:
            raise RunError(f"the score of an answer by {metric} is not in the run's predictions")
        return self.own_score

    @property
    def closest(self) -> tuple[str, str]:
        """Prediction and the accepted answer closest to it, as the released scores take them.

        Unnormalized comparison becomes a pair of equal or different words.
        """
        if self.exact:
            return ("right" if self.is_right else "wrong"), "right"
        if not self.others:
            return self.prediction, self.label
        return self.prediction, max(
            self.accepted, key=lambda a: (exact_match(self.prediction, a), rouge_l(self.prediction, a))
        )

    @property
    def labels(self) -> Pair:
        """The label that it counts for, and the one that was answered, as `nlora.evaluation.per_label` takes them."""
        answered = None if self.is_outside else _as_label(self.prediction, exact=self.exact)
        if answered is not None and self.is_right:
            return answered, answered
        return _as_label(self.label, exact=self.exact), answered


def graded(task: Task, texts: Sequence[str]) -> list[Answer]:
    """A model's answers to the task's test examples, in their order.

    Raises InputErrors if the task's own function fails.
    """
    exact = not told_apart(task.labels or ())
    known = None if task.labels is None else {_as_label(label, exact=exact) for label in task.labels}
    return [
        Answer(
            text=example.sentence,
            label=example.label,
            prediction=text,
            exact=exact,
            others=example.others,
            is_outside=known is not None and _as_label(text, exact=exact) not in known,
            own_score=None if task.scorer is None else own_score(task, example, text),
        )
        for example, text in zip(task.test, texts, strict=True)
    ]


def right_probability(task: Task, probabilities: Sequence[Sequence[float]]) -> float:
    """The mean probability of the right label, in percent: the accuracy to be expected of answers that are drawn.

    probabilities: of each of the task's labels, in their order, for each test example.

    >>> test = (Example("0", "meow", "cat"), Example("1", "woof", "dog"))
    >>> animals = Task("animals", "TC", "Which animal?", ("cat", "dog"), train=(), test=test)
    >>> right_probability(animals, [(0.9, 0.1), (0.5, 0.5)])
    70.0
    """
    by_label = [graded(task, [label] * len(task.test)) for label in task.labels or ()]
    right = [
        probability * answer.is_right
        for row, answers in zip(probabilities, zip(*by_label, strict=True), strict=True)
        for probability, answer in zip(row, answers, strict=True)
    ]
    return 100.0 * math.fsum(right) / len(probabilities)


def own_score(task: Task, example: Example, text: str) -> float:
    """0 to 1, by the task's own function. Raises InputErrors, in one line, if it raises or returns anything else."""
    assert task.scorer is not None
    where = f"task {task.name}: {task.metric}"
    try:
        found: Any = task.scorer(text, tuple(answer.strip() for answer in example.answers))
        if callable(item := getattr(found, "item", None)):  # a scalar of NumPy or torch
            found = item()
    except Exception as error:
        what = f"{where} raised {one_line(error)} on example {example.id}, prediction {_short(text)}"
        raise InputErrors([Problem("", what)]) from error
    if isinstance(found, int | float) and -_ROUNDING <= found <= 1 + _ROUNDING:
        return min(max(float(found), 0.0), 1.0)
    what = f"{where} returned {_short(found)} for example {example.id}; it must return a number from 0 to 1"
    raise InputErrors([Problem("", what)])


def by_label(task: Task, answers: Sequence[Answer]) -> dict[str, LabelCounts]:
    """The counts of each of the task's labels, in their order, and of any other label that its examples have."""
    exact = not told_apart(task.labels or ())
    words = dict.fromkeys([*(task.labels or ()), *(answer.label for answer in answers)])
    names: dict[str, str] = {}
    for label in words:
        names.setdefault(_as_label(label, exact=exact), label)
    found = count_labels([answer.labels for answer in answers], names)
    return {names[word]: counts for word, counts in found.items()}


def _as_label(text: str, *, exact: bool) -> str:
    """Equal for texts that are the same label."""
    return text if exact else normalize(text)


def _short(value: Any) -> str:
    """A value as Python writes it, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def percent(answers: Sequence[Answer], metric: Metric) -> float:
    """The score of a task, an entry of R, not rounded. Raises ValueError if there is nothing to score.

    The mean of the examples' scores, but for macro_f1.
    """
    if not answers:
        raise ValueError("no predictions to score; a score of nothing is undefined")
    if metric == "macro_f1":
        return 100.0 * macro_f1([answer.labels for answer in answers])
    return 100.0 * math.fsum(answer.score(metric) for answer in answers) / len(answers)
