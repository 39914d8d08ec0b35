"""Edit similarity and SARI against their definitions, other implementations, and numbers that these publish."""

from __future__ import annotations

from difflib import SequenceMatcher
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from nlora.evaluation.answer import Answer, percent
from nlora.evaluation.edit_metrics import _words, edit_similarity, sari
from nlora.evaluation.trace import identical, py150, science_qa


def longest_common(one: str, other: str) -> int:
    """By the textbook's recursion."""

    @cache
    def of(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + of(i + 1, j + 1)
        return max(of(i + 1, j), of(i, j + 1))

    return of(0, 0)


@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
def test_edit_similarity_is_that_of_the_longest_common_subsequence(one: str, other: str) -> None:
    expected = 2 * longest_common(one, other) / (len(one) + len(other)) if one and other else 0.0
    assert edit_similarity(one, other) == pytest.approx(expected)
    assert edit_similarity(one, other) == edit_similarity(other, one)
    if one and other:  # difflib finds some common subsequence, not always the longest
        assert edit_similarity(one, other) >= SequenceMatcher(None, one, other).ratio() - 1e-12


def test_what_fuzzywuzzy_documents() -> None:
    assert round(100 * edit_similarity("this is a test", "this is a test!")) == 97
    assert round(100 * edit_similarity("fuzzy wuzzy was a bear", "wuzzy fuzzy was a bear")) == 91


def test_the_published_example_of_sari() -> None:
    """Of the metric `sari` on the Hugging Face hub."""
    references = [
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    ]
    found = sari("About 95 species are currently accepted.", "About 95 you now get in.", references)
    assert 100 * found == pytest.approx(26.953601953601954)


def test_sari_by_hand() -> None:
    """Source a b, prediction a c, reference a d: of the words, a is kept rightly, b deleted rightly, c added wrongly.

    Pairs: "a b" is deleted rightly, "a c" added wrongly, none was to be kept. Longer n-grams: there are none.
    """
    words, pairs, nothing = (1 + 1 + 0) / 3, (1 + 1 + 0) / 3, 1.0
    assert sari("a b", "a c", ["a d"]) == pytest.approx((words + pairs + 2 * nothing) / 4)
    assert sari("a b c d e", "a c e", ["a c e"]) == 1.0


@given(st.text("aB9 .,-'!\n&;quot<>", max_size=40))
def test_the_words_are_those_of_mteval(text: str) -> None:
    assert _words(text) == Tokenizer13a()(text.lower()).split()


def test_they_are_metrics_of_a_task() -> None:
    answers = [
        Answer("a b", "a d", "a c"),
        Answer("x", "kitten", "sitting", others=("sitten",)),
    ]
    scores = [edit_similarity("a c", "a d"), edit_similarity("sitting", "sitten")]
    assert percent(answers, "edit_similarity") == pytest.approx(50 * sum(scores))
    assert answers[0].score("sari") == sari("a b", "a c", ["a d"])


def test_the_scores_of_trace() -> None:
    assert [identical(text, ["-3.5"]) for text in ("-3.5", "3.5", "-35", "")] == [1, 0, 0, 0]
    assert identical("", [""]) == 0
    answer = ["Answer: A\nBecause experiments can be designed."]
    texts = ("Answer: A", "Answer: B\nBecause Answer: A", "A", "Because. Answer: A")
    assert [science_qa(text, answer) for text in texts] == [1, 0, 0, 1]
    texts = ("A", "A\nBecause it is so.", "B\nA", "Answer: A", "", "a")
    answer = ["A\nBecause experiments can be designed."]
    assert [science_qa(text, answer) for text in texts] == [1, 1, 0, 1, 0, 0]
    assert science_qa("B", ["A", "B"]) == 1
    assert py150("f ( '<STR_LIT:a>' , <NUM_LIT> )", ["f ( 'a' , 0 )"]) == 1
    assert py150("", ["x"]) == 0
