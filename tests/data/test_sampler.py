"""Batches by length: every example once, little padding, and an order determined by the seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.sampler import POOL_BATCHES, LengthGroupedSampler, ProcessBatches

LENGTHS = random.Random(7).choices(range(5, 300), k=1003)


def epoch(number: int = 0, *, seed: int = 3, batch_size: int = 8) -> list[int]:
    order = LengthGroupedSampler(LENGTHS, batch_size=batch_size, seed=seed)
    order.set_epoch(number)
    assert len(order) == len(LENGTHS)
    return list(order)


@pytest.mark.parametrize("batch_size", [1, 8, 64, 5000])
def test_every_example_occurs_once_per_epoch(batch_size: int) -> None:
    assert sorted(epoch(batch_size=batch_size)) == list(range(len(LENGTHS)))


def test_the_seed_and_the_epoch_determine_the_order() -> None:
    assert epoch() == epoch()
    assert epoch() != epoch(1)
    assert epoch() != epoch(seed=4)
    order = LengthGroupedSampler(LENGTHS, batch_size=8, seed=3)
    assert list(order) == list(order), "a pass must not depend on the passes before it"


def test_batches_have_similar_lengths_and_a_random_order() -> None:
    order = epoch()
    batches = [[LENGTHS[i] for i in order[start : start + 8]] for start in range(0, 1000, 8)]
    # Each pool of 400 sorted lengths between 5 and 299: 8 neighbors are about 6 tokens apart.
    assert sorted(max(b) - min(b) for b in batches)[len(batches) // 2] < 12
    firsts = [b[0] for b in batches]
    assert firsts != sorted(firsts)
    assert {min(batch) > 150 for batch in batches[:20]} == {True, False}


def test_an_epochs_last_batch_is_random() -> None:
    lasts = {tuple(sorted(epoch(number)[-3:])) for number in range(5)}
    assert len(lasts) == 5


def test_examples_of_one_batch_differ_between_epochs() -> None:
    def together(order: list[int]) -> set[int]:
        at = order.index(0)
        return set(order[at - at % 8 : at - at % 8 + 8])

    assert together(epoch(0)) != together(epoch(1))


def test_batches_have_little_padding() -> None:
    def padding(order: list[int]) -> int:
        batches = [[LENGTHS[i] for i in order[start : start + 8]] for start in range(0, len(order), 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    shuffled = random.Random(1).sample(range(len(LENGTHS)), len(LENGTHS))
    assert padding(epoch()) < 0.1 * padding(shuffled)


def test_only_examples_of_one_pool_share_a_batch() -> None:
    # With one example per batch there is nothing to sort, so the order is the shuffled one.
    few = LengthGroupedSampler(list(range(POOL_BATCHES)), batch_size=1, seed=2)
    assert sorted(few) == list(range(POOL_BATCHES))
    assert list(few) != sorted(few)


@given(
    examples=st.integers(0, 40),
    batch=st.integers(1, 12),
    micro=st.integers(1, 12),
    size=st.integers(1, 5),
)
def test_processes_share_each_batch_and_take_the_same_number_of_steps(
    examples: int, batch: int, micro: int, size: int
) -> None:
    order = LengthGroupedSampler([7 * i % 13 for i in range(examples)], batch_size=batch, seed=3)
    shares = [
        ProcessBatches(order, batch_size=batch, micro=micro, rank=rank, size=size) for rank in range(size)
    ]
    dealt = [list(share) for share in shares]
    assert [len(some) for some in dealt] == [len(share) for share in shares] == [len(dealt[0])] * size
    rounds = -(-batch // (micro * size))  # of a whole batch
    indices = list(order)
    for step, start in enumerate(range(0, examples, batch)):
        parts = [part for some in dealt for part in some[step * rounds : (step + 1) * rounds]]
        assert sorted(i for part in parts for i in part) == sorted(indices[start : start + batch])
        assert max(map(len, parts)) <= micro
