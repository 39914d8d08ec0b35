"""95 % intervals of scores.

>>> [round(end, 1) for end in wilson(17, 20)]
[64.0, 94.8]
>>> [round(end, 1) for end in t_interval([60.0, 62.0, 64.0])]
[57.0, 67.0]

Over test examples: Wilson's score interval (1927) for shares of right answers, and a bootstrap (Efron 1979) for other
scores. Over seeds: Student's t interval of the mean, which assumes that the seeds' scores are nearly normal. Each says
how far the score could move with other examples, or other seeds; none covers both.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlora.evaluation.answer import Answer
from nlora.evaluation.choices import Metric

DRAWS = 2000
"""Of a bootstrap."""
_NORMAL = statistics.NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """The ends, in the unit of the score."""

    low: float
    high: float


def wilson(right: float, count: int) -> Interval:
    """Of the percentage `right` out of `count` > 0."""
    share, z = right / count, _NORMAL
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return Interval(max(scale * (middle - half), 0.0), min(scale * (middle + half), 100.0))


def t_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def t_quantile(freedom: int) -> float:
    """The t that Student's distribution exceeds in absolute value with probability 0.05. freedom: 1 or more.

    By bisection of the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun's Handbook (1964).

    >>> round(t_quantile(4), 3)
    2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _inside(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    """The probability that |t| is at most sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(2, freedom, 2):
            term *= cosine * cosine * (k - 1) / k
            total += term
        return sine * total
    term = total = cosine if freedom > 1 else 0.0
    for k in range(3, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total)


def score_interval(answers: Sequence[Answer], metric: Metric) -> Interval | None:
    """Of a task's score by its metric, in percent, over its test examples; None without any."""
    if not answers:
        return None
    if metric == "exact_match":
        return wilson(sum(answer.is_right for answer in answers), len(answers))
    return middle_of(score_draws(answers, metric))


def score_draws(answers: Sequence[Answer], metric: Metric, *, seed: int = 0) -> NDArray[np.float64]:
    """(DRAWS,): the score in percent of bootstrap samples of one or more answers.

    seed: gives the same samples again; tasks that are averaged need samples of their own.
    """
    draw = np.random.default_rng(seed)
    if metric != "macro_f1":
        values, counts = np.unique([answer.score(metric) for answer in answers], return_counts=True)
        drawn = draw.multinomial(len(answers), counts / counts.sum(), DRAWS)
        means: NDArray[np.float64] = 100 * (drawn @ values) / len(answers)
        return means
    pairs = Counter(answer.labels for answer in answers)
    shares = np.array(list(pairs.values())) / len(answers)
    drawn = draw.multinomial(len(answers), shares, DRAWS)
    total, occurs = np.zeros(DRAWS), np.zeros(DRAWS)
    for label in {label for pair in pairs for label in pair if label is not None}:
        asked = np.array([pair[0] == label for pair in pairs], float)
        answered = np.array([pair[1] == label for pair in pairs], float)
        size = drawn @ (asked + answered)
        total += 2 * (drawn @ (asked * answered)) / np.maximum(size, 1)
        occurs += size > 0
    return 100 * total / occurs


def middle_of(draws: NDArray[np.float64]) -> Interval:
    """The middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))
