"""Scores of drawn answers: their bounds, what cannot change them, and the same number counted out otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.evaluation.continual_metrics import summarize
from nlora.evaluation.paired_test import holm, sign_test
from nlora.evaluation.per_label import count_labels, macro_f1
from nlora.evaluation.text_metrics import aggregate, exact_match, free_text_score, normalize, rouge, rouge_l

WORDS = st.lists(st.sampled_from(["fox", "dog", "ox", "b7"]), max_size=7)
PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "x", None])), min_size=1)


# Texts


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The longest common subsequence, among all subsequences of the shorter one."""
    short, long = sorted((a, b), key=len)

    def is_in(part: Sequence[str]) -> bool:
        rest = iter(long)
        return all(word in rest for word in part)

    parts = (
        [w for w, keep in zip(short, mask, strict=True) if keep]
        for mask in product((0, 1), repeat=len(short))
    )
    return max(len(part) for part in parts if is_in(part))


def f_measure(common: int, a: Sequence[str], b: Sequence[str]) -> float:
    return 2 * common / (len(a) + len(b)) if a and b else 0.0


@given(WORDS, WORDS)
def test_rouge_counts_words_and_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    found = rouge(" ".join(a), " ".join(b))
    common = sum(min(a.count(word), b.count(word)) for word in set(a))
    assert found.rouge1 == pytest.approx(f_measure(common, a, b))
    assert found.rougeL == pytest.approx(f_measure(longest_common(a, b), a, b))


@given(WORDS, WORDS)
def test_words_and_characters_of_other_scripts_count_alike(a: list[str], b: list[str]) -> None:
    letters = {"fox": "狐", "dog": "犬", "ox": "牛", "b7": "七"}
    wanted = rouge_l(" ".join(a), " ".join(b)) if b else 0.0
    assert rouge_l("".join(letters[w] for w in a), "".join(letters[w] for w in b)) == pytest.approx(wanted)


@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_of_any_two_texts_have_bounds_and_are_symmetric(a: str, b: str) -> None:
    scores = (*rouge(a, b), rouge_l(a, b))
    assert all(0 <= score <= 1 for score in scores)
    assert rouge(a, b) == pytest.approx(rouge(b, a))
    assert exact_match(a, b) == exact_match(b, a)
    if a.split():
        assert rouge_l(a, a) == 1


@given(WORDS)
def test_case_spaces_and_punctuation_do_not_decide_a_match(words: list[str]) -> None:
    decorated = "  " + " \t".join(f"{word.upper()}," for word in words) + ".\n"
    assert normalize(decorated) == " ".join(words)
    assert exact_match(decorated, " ".join(words))


@given(st.lists(st.tuples(st.text("aB .", max_size=6), st.text("aB .", max_size=6)), min_size=1))
def test_the_order_of_the_examples_does_not_matter(pairs: list[tuple[str, str]]) -> None:
    one, other = ([list(side) for side in zip(*order, strict=True)] for order in (pairs, sorted(pairs)))
    assert aggregate(*one) == pytest.approx(aggregate(*other), abs=1e-4)
    assert free_text_score(*one) == pytest.approx(free_text_score(*other))
    assert 0 <= free_text_score(*one) <= 100
    assert aggregate(*one)["exact_match"] == round(100 * sum(exact_match(*p) for p in pairs) / len(pairs), 4)


# Labels


@given(PAIRS)
def test_counts_add_up_and_scores_have_bounds(pairs: list[tuple[str, str | None]]) -> None:
    counts = count_labels(pairs, "abc")
    assert sum(c.support for c in counts.values()) == len(pairs)
    assert sum(c.answered for c in counts.values()) == sum(answer is not None for _, answer in pairs)
    assert sum(c.right for c in counts.values()) == sum(a == b for a, b in pairs)
    for c in counts.values():
        assert c.right <= min(c.support, c.answered)
        if c.precision and c.recall:
            assert c.f1 == pytest.approx(2 / (1 / c.precision + 1 / c.recall))
        assert c.f1 is None or 0 <= c.f1 <= 1
    assert 0 <= macro_f1(pairs) <= 1
    assert (macro_f1(pairs) == 1) == all(a == b for a, b in pairs)


@given(PAIRS, st.permutations("abcx"))
def test_order_names_and_sides_do_not_change_macro_f1(
    pairs: list[tuple[str, str | None]], names: list[str]
) -> None:
    renamed = {**dict(zip("abcx", names, strict=True)), None: None}
    assert macro_f1([(str(renamed[a]), renamed[b]) for a, b in pairs[::-1]]) == pytest.approx(macro_f1(pairs))
    if answered := [(a, b) for a, b in pairs if b is not None]:
        swapped = [(b, a) for a, b in answered]
        assert macro_f1(swapped) == pytest.approx(macro_f1(answered))
        mine, other = count_labels(answered), count_labels(swapped)
        assert {label: c.precision for label, c in mine.items()} == {
            label: c.recall for label, c in other.items()
        }


# Tests of two models


@given(st.integers(0, 5), st.integers(0, 5))
def test_the_sign_test_counts_the_tosses_that_are_as_uneven(worse: int, better: int) -> None:
    tosses = list(product((-1, 1), repeat=worse + better))
    uneven = sum(abs(sum(toss)) >= abs(worse - better) for toss in tosses)
    assert sign_test(worse, better) == uneven / len(tosses)
    assert sign_test(worse, better) == sign_test(better, worse)


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_a_more_uneven_outcome_is_less_likely(worse: int, better: int) -> None:
    p = sign_test(worse, better)
    assert 0 <= p <= 1
    if worse > better > 0:
        assert sign_test(worse + 1, better - 1) < p or p < 1e-300


P_VALUES = st.lists(st.floats(0, 1), max_size=8)


@given(P_VALUES, st.floats(0, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    """Holm's procedure itself: the smallest p is compared with α/m, the next with α/(m-1), until one is larger."""
    rejected: set[int] = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni_in_any_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        assert p <= found <= min(1, len(p_values) * p)
    assert holm(p_values[::-1]) == corrected[::-1]


# Accuracy matrices


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float | None]]:
    tasks = draw(st.integers(1, 5))
    row = st.lists(st.none() | st.integers(0, 100).map(float), min_size=tasks, max_size=tasks)
    return draw(st.lists(row, min_size=1, max_size=tasks))


def mean(values: Sequence[Fraction | None]) -> Fraction | None:
    known = [value for value in values if value is not None]
    return sum(known, Fraction(0)) / len(known) if known and len(known) == len(values) else None


@given(matrices(), st.data())
def test_the_metrics_by_their_formulas(R: list[list[float | None]], data: st.DataObject) -> None:
    T = len(R[0])
    zero = data.draw(st.lists(st.none() | st.integers(0, 100), min_size=T, max_size=T))

    def r(k: int, i: int) -> Fraction | None:  # from 1, as in the papers; None beyond the stages so far
        value = (zero if k == 0 else R[k - 1] if k <= len(R) else [None] * T)[i - 1]
        return None if value is None else Fraction(value)

    def minus(a: Fraction | None, b: Fraction | None) -> Fraction | None:
        return None if a is None or b is None else a - b

    def best(i: int) -> Fraction | None:
        seen = [r(k, i) for k in range(i, T)]
        return None if None in seen else max(v for v in seen if v is not None)

    changes = [minus(r(T, i), r(i, i)) for i in range(1, T)]
    known = [change for change in changes if change is not None]
    expected = {
        "average_accuracy": mean([r(T, i) for i in range(1, T + 1)]),
        "backward_transfer": mean(changes),
        "backward_transfer_over_all": Fraction(sum(known), T) if T > 1 and len(known) == T - 1 else None,
        "forgetting": mean([minus(best(i), r(T, i)) for i in range(1, T)]),
        "forward_transfer": mean([minus(r(i - 1, i), r(0, i)) for i in range(2, T + 1)]),
    }
    found = summarize(R, zero_shot=zero)
    assert {key: value is None for key, value in found.items()} == {k: v is None for k, v in expected.items()}
    for key, value in expected.items():
        if value is not None:
            assert found[key] == pytest.approx(float(value), abs=1e-9)
            assert abs(found[key] or 0) <= 100
