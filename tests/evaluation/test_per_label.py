"""Precision, recall, F1 and macro-F1 against numbers of scikit-learn, and by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.task import Example, Task
from nlora.evaluation.answer import Answer, by_label, graded, percent
from nlora.evaluation.per_label import count_labels, macro_f1

REFERENCES, ANSWERS = "aaaabbbccd", "abbbbbacea"


def test_the_numbers_of_scikit_learn() -> None:
    # f1_score(average="macro") and precision_recall_fscore_support of scikit-learn 1.9.1, where 0/0 is 0.
    pairs = list(zip(REFERENCES, ANSWERS, strict=True))
    assert macro_f1(pairs) == pytest.approx(0.29047619047619044, abs=1e-15)
    found = count_labels(pairs)
    assert [counts.precision for counts in found.values()] == pytest.approx([1 / 3, 0.4, 1.0, None, 0.0])
    assert [counts.recall for counts in found.values()] == pytest.approx([0.25, 2 / 3, 0.5, 0.0, None])
    assert [counts.f1 for counts in found.values()] == pytest.approx([2 / 7, 0.5, 2 / 3, 0.0, 0.0])


def by_hand(pairs: list[tuple[str, str | None]]) -> Fraction:
    """Mean over the labels of 2PR / (P + R), in fractions, from the pairs themselves."""
    labels = {label for pair in pairs for label in pair if label is not None}
    total = Fraction(0)
    for label in labels:
        answered = [reference for reference, answer in pairs if answer == label]
        wanted = [answer for reference, answer in pairs if reference == label]
        if answered.count(label):
            precision = Fraction(answered.count(label), len(answered))
            recall = Fraction(wanted.count(label), len(wanted))
            total += 2 * precision * recall / (precision + recall)
    return total / len(labels)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "e", None])), min_size=1)
)
def test_macro_f1_is_the_mean_of_harmonic_means(pairs: list[tuple[str, str | None]]) -> None:
    assert macro_f1(pairs) == pytest.approx(float(by_hand(pairs)), abs=1e-12)


def task(labels: tuple[str, ...], *answers: tuple[str, ...]) -> Task:
    test = tuple(Example(str(i), f"text {i}", a[0], a[1:]) for i, a in enumerate(answers))
    return Task("t", "t", "", labels, train=(), test=test)


def test_answers_are_counted_by_the_label_that_they_are_after_normalization() -> None:
    one = task(("Red", "Green", "Blue"), ("Red",), ("Red",), ("Green",), ("Green",))
    answers = graded(one, ["red.", "GREEN", "no idea", "green"])
    assert [answer.is_outside for answer in answers] == [False, False, True, False]
    found = by_label(one, answers)
    assert list(found) == ["Red", "Green", "Blue"]  # in the task's order, also those that do not occur
    numbers = {label: (c.support, c.answered, c.right, c.f1) for label, c in found.items()}
    assert numbers == {"Red": (2, 1, 1, 2 / 3), "Green": (2, 2, 1, 0.5), "Blue": (0, 0, 0, None)}
    assert percent(answers, "macro_f1") == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert percent(answers, "exact_match") == 50.0


def test_labels_that_differ_in_punctuation_only_are_counted_apart() -> None:
    one = task(("-1", "1"), ("-1",), ("1",))
    answers = graded(one, ["1", "1"])
    assert [answer.is_right for answer in answers] == [False, True]
    found = by_label(one, answers)
    assert [(c.support, c.answered, c.right) for c in found.values()] == [(1, 0, 0), (1, 2, 1)]


def test_an_example_with_several_labels_counts_for_the_accepted_one_that_was_answered() -> None:
    one = task(("a", "b", "c"), ("a", "b"), ("a", "b"), ("a", "b"))
    found = by_label(one, graded(one, ["b", "c", "a"]))
    assert {label: (c.support, c.answered, c.right) for label, c in found.items()} == {
        "a": (2, 1, 1),
        "b": (1, 1, 1),
        "c": (0, 1, 0),
    }


def test_a_reference_outside_of_the_label_set_has_a_row_of_its_own() -> None:
    """As the test examples of MNLI that the release marks as unlabeled."""
    one = task(("yes", "no"), ("-",), ("no",))
    found = by_label(one, graded(one, ["yes", "no"]))
    assert {label: (c.support, c.answered) for label, c in found.items()} == {
        "yes": (0, 1),
        "no": (1, 1),
        "-": (1, 0),
    }


def test_nothing_to_score_is_an_error() -> None:
    assert macro_f1([]) == 0.0
    with pytest.raises(ValueError, match="no predictions to score"):
        percent([], "macro_f1")


def test_one_answer_alone_has_no_macro_f1_but_is_right_or_wrong() -> None:
    assert Answer("x", "a", "A").score("macro_f1") == 1.0
    assert Answer("x", "a", "b").score("macro_f1") == 0.0
