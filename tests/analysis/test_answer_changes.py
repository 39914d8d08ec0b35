"""Which answers changed, and the exact tests of it."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest

from nlora.analysis.answer_changes import task_changes
from nlora.evaluation.paired_test import holm, sign_test
from nlora.runs.answers import Answer, ExampleKey


def answers(*predictions: tuple[str, str]) -> dict[ExampleKey, Answer]:
    """(label, prediction) of examples 0, 1, ..."""
    return {
        (str(i), "text", label, 0): Answer("text", label, said) for i, (label, said) in enumerate(predictions)
    }


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (3, 3), (9, 1), (2, 11), (40, 22)])
def test_the_p_value_counts_the_outcomes_that_are_at_least_as_uneven(worse: int, better: int) -> None:
    n = worse + better
    uneven = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(worse - better))
    assert sign_test(worse, better) == pytest.approx(uneven / 2**n)
    assert sign_test(worse, better) == sign_test(better, worse)


def test_the_p_value_is_that_of_all_sequences_of_coin_tosses() -> None:
    tosses = [sum(toss) for toss in product((0, 1), repeat=8)]
    assert sign_test(7, 1) == sum(abs(2 * heads - 8) >= 6 for heads in tosses) / len(tosses)


def test_thousands_of_changes_are_no_trouble() -> None:
    assert sign_test(5000, 5200) == pytest.approx(0.0488, abs=1e-4)  # normal approximation: 0.0488
    assert sign_test(0, 20_000) == 0.0


def test_holm_rejects_step_by_step() -> None:
    """Holm's rule at level a: reject the smallest p-values as long as p_(k) <= a / (m - k)."""
    p_values = [0.012, 0.2, 0.001, 0.03, 0.04]
    for alpha in (0.005, 0.02, 0.05, 0.06, 0.1, 0.5):
        rejected = set()
        for rank, place in enumerate(sorted(range(5), key=p_values.__getitem__)):
            if p_values[place] > alpha / (5 - rank):
                break
            rejected.add(place)
        assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_labels_are_counted_apart() -> None:
    before = answers(("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "A."))
    after = answers(("a", "b"), ("a", "a"), ("a", "a"), ("b", "b"), ("b", "b"))
    found = task_changes("t", "exact_match", before, after)
    assert (found.before, found.after, found.drop) == (60.0, 80.0, -20.0)
    assert (found.changes.count, found.changes.worse, found.changes.better) == (5, 1, 2)
    assert {k: (c.count, c.worse, c.better) for k, c in found.labels.items()} == {
        "a": (3, 1, 1),
        "b": (2, 0, 1),
    }


def test_free_text_is_compared_by_its_score() -> None:
    before = answers(("the red fox", "the red fox"), ("the sea", "the sky"))
    after = answers(("the red fox", "the red dog"), ("the sea", "the sea"))
    found = task_changes("t", "rougeL", before, after)
    assert (found.changes.worse, found.changes.better, found.labels) == (1, 1, {})
    assert found.before == pytest.approx(75.0)
    assert found.after == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_only_examples_that_both_answered_count() -> None:
    before, after = answers(("a", "a"), ("a", "a")), answers(("a", "b"))
    assert task_changes("t", "exact_match", before, after).changes.count == 1
    with pytest.raises(ValueError, match="no example was answered by both"):
        task_changes("t", "exact_match", before, {})
