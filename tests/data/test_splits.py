"""Samples and validation splits: sizes, shares, disjointness and determinism, for any mix of labels."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.splits import hold_out, sample, split_off
from nlora.data.task import Example, Task
from nlora.errors import InputErrors

LABELS = ("a", "b", "c", "d")
examples_of = st.lists(st.sampled_from(LABELS), min_size=1, max_size=60).map(
    lambda labels: tuple(Example(str(i), f"text {i}", label) for i, label in enumerate(labels))
)


def counts(examples: tuple[Example, ...]) -> Counter[str]:
    return Counter(example.label for example in examples)


def task_of(train: tuple[Example, ...], labels: tuple[str, ...] | None = LABELS) -> Task:
    return Task("t", "T", "", labels, train, (Example("0", "a test text", "a"),))


@given(examples=examples_of, n=st.integers(0, 70), seed=st.integers(0, 2**32))
def test_sample_has_its_size_order_and_shares(examples: tuple[Example, ...], n: int, seed: int) -> None:
    chosen = sample(examples, n, seed)
    assert len(chosen) == min(n, len(examples))
    assert [int(e.id) for e in chosen] == sorted({int(e.id) for e in chosen})
    assert set(chosen) <= set(examples)
    assert chosen == sample(examples, n, seed)
    share = len(chosen) / len(examples)
    there = counts(examples)
    assert all(abs(counts(chosen)[label] - share * there[label]) < 1 for label in there)


@given(examples=examples_of, share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_hold_out_splits_train_and_ignores_test(
    examples: tuple[Example, ...], share: float, seed: int
) -> None:
    there = counts(examples)
    spare = len(examples) - len(there)
    if spare == 0 or len(examples) < 2:
        with pytest.raises(InputErrors, match="too few"):
            hold_out(task_of(examples), share, seed)
        return
    held = hold_out(task_of(examples), share, seed)
    assert sorted(held.train + held.test, key=lambda e: int(e.id)) == list(examples)
    assert not set(held.train) & set(held.test)
    assert len(held.test) == min(max(1, round(share * len(examples))), spare)
    assert counts(held.train).keys() == there.keys()
    assert held == hold_out(task_of(examples), share, seed)


@given(examples=examples_of.filter(lambda e: len(e) > 1), share=st.floats(0.01, 0.99))
def test_free_text_is_held_out_at_random(examples: tuple[Example, ...], share: float) -> None:
    held = hold_out(task_of(examples, labels=None), share, 0)
    assert len(held.test) == min(max(1, round(share * len(examples))), len(examples) - 1)
    assert len(held.train) + len(held.test) == len(examples)


def test_equal_labels_get_equal_shares() -> None:
    examples = tuple(Example(str(i), f"text {i}", LABELS[i % 4]) for i in range(400))
    assert set(counts(sample(examples, 100, 1)).values()) == {25}
    held = hold_out(task_of(examples), 0.2, 1)
    assert set(counts(held.test).values()) == {20}
    assert set(counts(held.train).values()) == {80}


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_remainders_get_the_rest(seed: int) -> None:
    # Shares of 10: 9 2/3 and 1/3, so 10 and 0.
    examples = tuple(Example(str(i), f"text {i}", "b" if i == 7 else "a") for i in range(30))
    assert counts(sample(examples, 10, seed)) == {"a": 10}


def test_samples_differ_by_seed_and_are_not_the_first_examples() -> None:
    examples = tuple(Example(str(i), f"text {i}", f"answer {i}") for i in range(200))
    first, second = sample(examples, 50, 1), sample(examples, 50, 2)
    assert first != second
    # A head or a tail would have a mean of 24.5 or 174.5; six standard errors around 99.5 are 43.
    assert abs(sum(int(e.id) for e in first) / 50 - 99.5) < 43


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        hold_out(task_of((Example("0", "x", "a"),) * 4), share, 0)


texts_of = st.lists(
    st.tuples(
        st.sampled_from([f"{word}{i}" for i in range(9) for word in ("Text  ", " text ")]),
        st.sampled_from(LABELS),
    ),
    min_size=2,
    max_size=40,
)


@given(rows=texts_of, share=st.floats(0.01, 0.99))
def test_no_text_of_train_is_split_off_for_test(rows: list[tuple[str, str]], share: float) -> None:
    examples = tuple(Example(str(i), text, label) for i, (text, label) in enumerate(rows))
    digits = {text[-1] for text, _ in rows}
    first = {text[-1]: label for text, label in reversed(rows)}
    if len(digits) == len(set(first.values())):
        with pytest.raises(InputErrors, match=r"tasks.0.test_share: task 't' has only \d different texts"):
            split_off(task_of(examples), share, ("tasks", 0))
        return
    split = split_off(task_of(examples), share, ("tasks", 0))
    assert sorted(split.train + split.test, key=lambda e: int(e.id)) == list(examples)
    on_sides = [{e.sentence[-1] for e in side} for side in (split.train, split.test)]
    assert not on_sides[0] & on_sides[1]
    assert {first[digit] for digit in on_sides[0]} == set(first.values())
    assert len(on_sides[1]) == min(max(1, round(share * len(digits))), len(digits) - len(set(first.values())))


def test_each_label_gives_its_share_of_texts() -> None:
    rows = [(f"text {i}", "a" if i < 60 else "b") for i in range(80)] * 2
    examples = tuple(Example(str(i), text, label) for i, (text, label) in enumerate(rows))
    split = split_off(task_of(examples), 0.1, ())
    assert counts(split.test) == {"a": 12, "b": 4}
    assert counts(split.train) == {"a": 108, "b": 36}
