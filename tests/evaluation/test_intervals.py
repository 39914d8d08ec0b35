"""Intervals, computed another way or taken from printed tables."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from nlora.evaluation.answer import Answer
from nlora.evaluation.intervals import (
    DRAWS,
    score_draws,
    score_interval,
    t_interval,
    t_quantile,
    wilson,
)
from nlora.evaluation.per_label import macro_f1

Z = 1.959963984540054


@pytest.mark.parametrize(("right", "count"), [(0, 10), (1, 3), (17, 20), (50, 100), (100, 100)])
def test_the_ends_of_wilsons_interval_are_z_standard_errors_from_the_share(right: int, count: int) -> None:
    for end in wilson(right, count):
        share = end / 100
        distance = abs(right / count - share)
        assert distance == pytest.approx(Z * math.sqrt(share * (1 - share) / count), abs=1e-7)
    low, high = wilson(right, count)
    assert low - 1e-9 <= 100 * right / count <= high + 1e-9


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (121, 1.980)],
)
def test_the_t_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    assert t_quantile(freedom) == pytest.approx(printed, abs=6e-4)


def test_one_value_has_no_t_interval() -> None:
    assert t_interval([61.0]) is None
    found = t_interval([60.0, 61.0, 65.0])
    assert found is not None
    assert found.high - 62 == pytest.approx(4.303 * statistics.stdev([60, 61, 65]) / math.sqrt(3), rel=1e-3)


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [Answer("text", label, given) for label, given in pairs]


MIXED = [("red", "red")] * 5 + [("red", "blue")] * 2 + [("blue", "blue")] * 4 + [("green", "red")]


def test_macro_f1_of_a_draw_is_that_of_the_drawn_answers() -> None:
    found = answers(*MIXED)
    pairs = list(dict.fromkeys(answer.labels for answer in found))
    shares = [sum(answer.labels == pair for answer in found) / len(found) for pair in pairs]
    drawn = np.random.default_rng(0).multinomial(len(found), shares, DRAWS)
    scores = score_draws(found, "macro_f1")
    for counts, score in zip(drawn[:50], scores, strict=False):
        expanded = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
        assert score == pytest.approx(100 * macro_f1(expanded))


def test_draws_of_a_mean_spread_by_its_standard_error() -> None:
    found = [Answer("", "", "", own_score=score / 40) for score in range(41)]
    draws = score_draws(found, "mine.py:score")
    values = [answer.own_score for answer in found]
    assert draws.mean() == pytest.approx(50, abs=0.5)
    assert draws.std() == pytest.approx(100 * statistics.pstdev(values) / math.sqrt(41), rel=0.05)  # type: ignore[type-var]


def test_exact_match_has_wilsons_interval_and_nothing_has_none() -> None:
    assert score_interval(answers(*MIXED), "exact_match") == wilson(9, 12)
    assert score_interval([], "exact_match") is None
    free = answers(("the red fox", "the fox"), ("a dog", "a cat"), ("one", "two"))
    found = score_interval(free, "rougeL")
    assert found is not None
    assert found.low < 100 * (0.8 + 0.5) / 3 < found.high
