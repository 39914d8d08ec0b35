"""Smaller sets out of larger ones: seeded, stratified by label, in the original order.

    sample(task.train, 1000, seed=42)          # at most 1000 examples, each label at its share
    hold_out(task, share=0.2, seed=42)         # a fifth of train becomes test; test is never looked at

(The released code's "random" sampling takes the head of the file; this takes a random sample.)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Problem


def sample(examples: Sequence[Example], n: int, seed: int) -> tuple[Example, ...]:
    """min(n, len(examples)) of the examples, in their order.

    Each label gets its share n·|label|/N, rounded up or down. Of free text, where hardly two answers are
    the same, this is a plain random sample.
    """
    if n < 0:
        raise ValueError(f"n is {n}; it cannot be negative")
    if n >= len(examples):
        return tuple(examples)
    groups = _by_label(examples)
    chosen = _choose(groups, n, [len(group) for group in groups], random.Random(seed))
    return tuple(examples[i] for i in sorted(chosen))


def hold_out(task: Task, share: float, seed: int) -> Task:
    """The task with a part of its training examples in place of its test examples.

    share: of the training examples, in (0, 1); at least one is held out and at least one stays. With labels,
        each label is held out at its share, and at least one example of each stays to be learned from.

    Raises InputErrors for a task that has too few training examples to give any away.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    total = len(task.train)
    groups = _by_label(task.train)
    spare = [len(group) - (task.labels is not None) for group in groups]
    n = min(max(1, round(share * total)), total - 1, sum(spare))
    if n < 1:
        what = f"its {total} training examples are too few to hold any out; use evaluate.split: test"
        raise InputErrors([Problem(f"task {task.name}", what)])
    held = _choose(groups, n, spare, random.Random(seed))
    return replace(
        task,
        train=tuple(example for i, example in enumerate(task.train) if i not in held),
        test=tuple(example for i, example in enumerate(task.train) if i in held),
    )


def _by_label(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples of each label, labels in the order in which they first appear."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[example.label].append(i)
    return list(groups.values())


def _choose(groups: list[list[int]], n: int, limits: list[int], rng: random.Random) -> set[int]:
    """n indices, spread over the groups by largest remainder, at most limits[g] of group g."""
    total = sum(len(group) for group in groups)
    quota = [n * len(group) / total for group in groups]
    counts = [min(int(q), limit) for q, limit in zip(quota, limits, strict=True)]
    # Ties between equal remainders are broken at random, else the labels seen first would always win.
    tie = [rng.random() for _ in groups]
    while (left := n - sum(counts)) > 0:
        open_groups = [g for g in range(len(groups)) if counts[g] < limits[g]]
        open_groups.sort(key=lambda g: (counts[g] - quota[g], tie[g]))
        for g in open_groups[:left]:
            counts[g] += 1
    return {i for group, count in zip(groups, counts, strict=True) for i in rng.sample(group, count)}
