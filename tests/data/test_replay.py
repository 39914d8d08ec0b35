"""What is kept of a task, and how later ones mix it into their batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlora.data.replay import Mix, hardest, hardest_within, stratified, stratified_within
from nlora.data.sampler import LengthGroupedSampler, MixedSampler, ProcessBatches
from nlora.data.splits import sample
from nlora.data.task import Example, Task

TRAIN = tuple(Example(str(i), f"text {i}", "ab"[i % 4 == 0]) for i in range(40))
TASK = Task("desk", "desk", "Which?", ("a", "b"), TRAIN, ())


def test_a_sample_is_by_label_and_the_one_that_method_replay_has_always_drawn() -> None:
    some = stratified(TASK, 8, seed=3)
    assert Counter(example.label for example in some) == {"a": 6, "b": 2}
    digest = hashlib.sha256(b"3/desk/replay").digest()
    assert some == sample(TRAIN, 8, int.from_bytes(digest[:8], "big"))
    assert stratified(TASK, 8, seed=4) != some


@given(lengths=st.lists(st.integers(1, 90), min_size=40, max_size=40), budget=st.integers(0, 2000))
def test_a_sample_fits_into_its_tokens_and_leaves_little(lengths: list[int], budget: int) -> None:
    some = stratified_within(TASK, lengths, budget, seed=1)
    used = sum(lengths[int(example.id)] for example in some)
    assert used <= budget
    assert bool(some) == (min(lengths) <= budget)
    if max(lengths) <= budget:
        assert some == stratified(TASK, len(some), seed=1)
    if budget >= sum(lengths):
        assert some == TRAIN


def test_what_is_longer_than_the_budget_does_not_empty_the_memory() -> None:
    lengths = [90] * 40
    lengths[7], lengths[21] = 44, 30
    some = [[int(e.id) for e in stratified_within(TASK, lengths, budget, seed=1)] for budget in (29, 43, 80)]
    assert some == [[], [21], [7, 21]]


def test_with_equal_lengths_as_many_as_fit_are_sampled() -> None:
    assert [len(stratified_within(TASK, [7] * 40, budget, seed=1)) for budget in (6, 7, 69, 70)] == [
        0,
        1,
        9,
        10,
    ]


def test_the_highest_losses_are_kept_in_the_order_of_the_task() -> None:
    losses = [0.5, 2.0, 0.1, 3.0, 2.0]
    assert hardest(losses, 2) == [1, 3]  # of the equal ones, the first
    assert hardest([0.5, 2.0, 0.1, 3.0, 2.0 + 1e-9], 2) == [1, 3]  # rounding decides nothing
    assert hardest(losses, 9) == [0, 1, 2, 3, 4]
    assert hardest(losses, 0) == []


def test_the_highest_losses_that_fit_into_their_tokens_are_kept() -> None:
    losses, tokens = [0.5, 2.0, 0.1, 3.0, 1.0], [4, 9, 1, 5, 4]
    assert hardest_within(losses, tokens, 10) == [2, 3, 4]  # 3 (5 tokens), not 1 (9 more), 4, not 0, 2
    assert hardest_within(losses, tokens, 14) == [1, 3]
    assert hardest_within(losses, tokens, 0) == []


@pytest.mark.parametrize(
    ("own", "share", "batches"),
    [
        (10, 0.5, [(4, 4), (4, 4), (2, 2)]),
        (10, 0.25, [(6, 2), (4, 1)]),  # 4 · 2/6 = 1.33
        (9, 0.8, [(2, 6), (2, 6), (2, 6), (2, 6), (1, 3)]),  # 0.8 · 8 = 6.4
        (6, 0.07, [(6, 1)]),  # 0.56 of 8 is one; 6 of the 7 new ones of a whole batch: 6 · 1/7 = 0.86
        (3, 0.1, [(3, 0)]),  # 3 · 1/7 = 0.43
    ],
)
def test_the_share_of_each_batch_by_hand(own: int, share: float, batches: list[tuple[int, int]]) -> None:
    mix = Mix.of(own, 3, 8, share)
    assert mix is not None
    assert mix.in_epoch == sum(map(sum, batches))
    assert mix.replayed_in_epoch == sum(replayed for _, replayed in batches)
    found, indices = [], list(mixed(mix))
    for new, replayed in batches:
        some, indices = indices[: new + replayed], indices[new + replayed :]
        found.append((sum(i < own for i in some), sum(i >= own for i in some)))
    assert (found, indices) == (batches, [])


def test_a_share_that_is_no_example_or_all_of_a_batch_cannot_be() -> None:
    assert Mix.of(10, 3, 8, 0.06) is None  # 0.48
    assert Mix.of(10, 3, 8, 0.94) is None  # 7.52
    assert Mix.of(10, 3, 1, 0.5) is None


def mixed(mix: Mix, *, epoch: int = 0, by_length: bool = True) -> MixedSampler:
    lengths = [7 * i % 13 for i in range(mix.own + mix.kept)]
    own = LengthGroupedSampler(lengths[: mix.own], batch_size=mix.new, seed=3)
    order = MixedSampler(own, mix, lengths=lengths if by_length else None, seed=3)
    order.set_epoch(epoch)
    assert len(order) == len(list(order))
    return order


def test_each_own_example_is_seen_once_and_kept_ones_in_rounds_that_go_on() -> None:
    mix = Mix(own=11, kept=5, batch_size=4, replayed=2)
    epochs = [list(mixed(mix, epoch=epoch)) for epoch in range(4)]
    assert all(sorted(i for i in order if i < 11) == list(range(11)) for order in epochs)
    draws = iter([i for epoch in range(4) for i in mixed(mix, epoch=epoch, by_length=False) if i >= 11])
    rounds = [list(islice(draws, 5)) for _ in range(4 * mix.replayed_in_epoch // 5)]
    assert all(sorted(some) == [11, 12, 13, 14, 15] for some in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert epochs[0] == list(mixed(mix))  # a pass depends on no pass before it
    assert epochs[0] != epochs[1]


@given(
    own=st.integers(1, 30),
    kept=st.integers(1, 9),
    batch=st.integers(2, 9),
    replayed=st.integers(1, 8),
    micro=st.integers(1, 9),
    size=st.integers(1, 3),
)
def test_processes_and_micro_batches_share_the_same_batches(
    own: int, kept: int, batch: int, replayed: int, micro: int, size: int
) -> None:
    mix = Mix(own, kept, batch, min(replayed, batch - 1))
    order = list(mixed(mix))
    assert sorted(i for i in order if i < own) == list(range(own))
    dealt = [
        list(ProcessBatches(mixed(mix), batch_size=batch, micro=micro, rank=rank, size=size))
        for rank in range(size)
    ]
    rounds = -(-batch // (micro * size))
    for step, start in enumerate(range(0, len(order), batch)):
        parts = [i for some in dealt for part in some[step * rounds : (step + 1) * rounds] for i in part]
        assert sorted(parts) == sorted(order[start : start + batch])
        assert start + batch > len(order) or sum(i < own for i in parts) == mix.new
