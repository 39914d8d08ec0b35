"""Samples and validation splits: seeded, stratified by label, in the original order.

>>> examples = [Example(str(i), f"text {i}", "ab"[i % 2]) for i in range(100)]
>>> [example.label for example in sample(examples, 6, seed=42)]
['b', 'b', 'a', 'a', 'a', 'b']

The released code's "random" sampling takes the first examples of the file; this takes a random sample.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Key, Problem


def draw_seed(seed: int, task: str, purpose: str) -> int:
    """The seed of one draw from a task's examples. Not by hash(), which differs between processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task}/{purpose}".encode()).digest()[:8], "big")


def sample(examples: Sequence[Example], n: int, seed: int) -> tuple[Example, ...]:
    """min(n, len(examples)) of the examples, in their order.

    Each label gets its share n·|label|/N, rounded up or down. For free text, where nearly all answers differ, this
    amounts to a plain random sample.
    """
    if n < 0:
        raise ValueError(f"n is {n}; it cannot be negative")
    if n >= len(examples):
        return tuple(examples)
    groups = _by_label(examples)
    chosen = _choose(groups, n, [len(group) for group in groups], random.Random(seed))
    return tuple(examples[i] for i in sorted(chosen))


def hold_out(task: Task, share: float, seed: int, way_out: str = "use evaluate.split: test") -> Task:
    """The task with a part of its training examples instead of its test examples.

    share: of the training examples, in (0, 1); at least one is held out and at least one is kept. With labels, the
        share is that of each label, and at least one example of each label is kept.

    way_out: what to do otherwise. Raises InputErrors for a task that has too few training examples.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must be between 0 and 1")
    held = _held_out(task.train, share, seed, labeled=task.labels is not None)
    if not held:
        what = f"its {len(task.train)} training examples are too few to hold any out; {way_out}"
        raise InputErrors([Problem(f"task {task.name}", what)])
    return _divided(task, held)


def split_off(task: Task, share: float, key: Key) -> Task:
    """The task with a part of its training examples as its test examples: the same part for every seed.

    share: of the different texts (apart from case and spaces), in (0, 1), as in `hold_out`. All examples of a text are
        on the same side.
    key: where the configuration has the task.

    Raises InputErrors for a task with too few different texts.
    """
    texts = [" ".join(example.sentence.split()).casefold() for example in task.train]
    first = dict(zip(reversed(texts), reversed(task.train), strict=True))
    unique = list(dict.fromkeys(texts))
    chosen = _held_out([first[text] for text in unique], share, 0, labeled=task.labels is not None)
    if not chosen:
        what = (
            f"task '{task.name}' has only {len(unique)} different texts, too few to split; use a 'test' file"
        )
        raise InputErrors([Problem.at((*key, "test_share"), what)])
    held = {unique[i] for i in chosen}
    return _divided(task, {i for i, text in enumerate(texts) if text in held})


def _held_out(examples: Sequence[Example], share: float, seed: int, *, labeled: bool) -> set[int]:
    """Indices of the examples to hold out; empty if there are too few."""
    groups = _by_label(examples)
    spare = [len(group) - labeled for group in groups]
    n = min(max(1, round(share * len(examples))), len(examples) - 1, sum(spare))
    return _choose(groups, n, spare, random.Random(seed)) if n > 0 else set()


def _divided(task: Task, held: set[int]) -> Task:
    return replace(
        task,
        train=tuple(example for i, example in enumerate(task.train) if i not in held),
        test=tuple(example for i, example in enumerate(task.train) if i in held),
    )


def _by_label(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples of each label; the labels are in the order of their first appearance."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[example.label].append(i)
    return list(groups.values())


def _choose(groups: list[list[int]], n: int, limits: list[int], rng: random.Random) -> set[int]:
    """n indices, divided among the groups by the largest remainder method, with at most limits[g] of group g."""
    total = sum(len(group) for group in groups)
    quota = [n * len(group) / total for group in groups]
    counts = [min(int(q), limit) for q, limit in zip(quota, limits, strict=True)]
    # Equal remainders are ordered at random; otherwise the first labels would always win.
    tie = [rng.random() for _ in groups]
    while (left := n - sum(counts)) > 0:
        open_groups = [g for g in range(len(groups)) if counts[g] < limits[g]]
        open_groups.sort(key=lambda g: (counts[g] - quota[g], tie[g]))
        for g in open_groups[:left]:
            counts[g] += 1
    return {i for group, count in zip(groups, counts, strict=True) for i in rng.sample(group, count)}
