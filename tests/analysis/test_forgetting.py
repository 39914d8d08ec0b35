"""Collision against forgetting: the drops and the correlation."""

from __future__ import annotations

import numpy as np
import pytest

from nlora.analysis.forgetting import against_forgetting, correlation
from nlora.runs.interference_file import PairValues

TASKS = ["a", "b", "c"]
R = [[90.0, None, None], [70.0, 80.0, None], [75.0, 60.0, 50.0]]


def measures(**rates: float | None) -> dict[str, PairValues]:
    return {pair: PairValues(collision_rate=rate, overlap_energy=0.5) for pair, rate in rates.items()}


def test_a_drop_is_what_one_stage_took() -> None:
    pairs = measures(**{"a|b": 0.1, "a|c": 0.2, "b|c": 0.3})
    made = against_forgetting(TASKS, R, pairs)
    assert [(p.earlier, p.later, p.drop, p.collision_rate) for p in made.pairs] == [
        ("a", "b", 20.0, 0.1),
        ("a", "c", -5.0, 0.2),
        ("b", "c", 20.0, 0.3),
    ]
    assert made.correlation == {"collision_rate": None, "overlap_energy": None}  # three pairs


def test_missing_scores_have_no_drop_and_missing_pairs_are_left_out() -> None:
    gaps = [[90.0, None, None], [None, 80.0, None], [75.0, 60.0, 50.0]]
    made = against_forgetting(TASKS, gaps, measures(**{"a|b": 0.1, "b|c": 0.3}))
    assert [p.drop for p in made.pairs] == [None, 20.0]


def test_correlations_equal_numpys_and_those_by_hand() -> None:
    x, y = [0.1, 0.4, 0.2, 0.9, 0.5], [3.0, 1.0, 4.0, 8.0, 5.0]
    made = correlation(x, y)
    assert made is not None
    assert made.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    # Ranks 1 3 2 5 4 and 2 1 3 5 4: 1 - 6·(1 + 4 + 1)/(5·24).
    assert made.spearman == pytest.approx(0.7)
    assert made.n == 5
    assert made.pearson_interval_95 is not None
    low, high = made.pearson_interval_95
    assert -1 <= low < made.pearson < high <= 1
    assert correlation(x, y) == made


def test_p_is_the_share_of_pairings_that_correlate_as_much() -> None:
    # Of the 120 orders of five points, the rising and the falling one: 2/120, and the given one counted in.
    made = correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert made is not None
    assert made.pearson == made.spearman == pytest.approx(1.0)
    assert made.p_permutation == pytest.approx(2 / 120, abs=0.006)


def test_ties_share_their_ranks() -> None:
    made = correlation([1, 1, 2, 3], [1, 2, 3, 3])
    assert made is not None
    assert made.spearman == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([0.1] * 4, [3, 1, 2, 4]),
        ([1, 2, 3, None], [1, 2, 3, 4]),
    ],
)
def test_too_few_or_constant_points_have_no_correlation(x: list[float | None], y: list[float]) -> None:
    assert correlation(x, y) is None
