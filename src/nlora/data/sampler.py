"""Which examples of a task make up a batch: those of similar length, in a seeded order.

    order = LengthGroupedSampler(lengths, batch_size=8, seed=1)
    list(order)                       # every index once, as an epoch trains on them; 8 at a time are a batch

A batch is as wide as its longest row, and what fills the others up costs as much as a token. So the shuffled
examples are sorted by length within pools of `POOL_BATCHES` batches, cut into batches, and the batches shuffled:
still random, but for who stands beside whom. A batch here is an optimizer step's, so its micro-batches,
whatever their size, hold the same examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

POOL_BATCHES = 50
"""Batches that are sorted together: larger pools pad less and are less random. transformers' own figure."""


class LengthGroupedSampler:
    """A sampler: the indexes of one epoch, another order in each.

    lengths: tokens of each example. batch_size: examples per optimizer step, over all processes.
    An epoch's last batch may be smaller, as with any sampler; which examples it holds is drawn at random.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is, counted from 0. The Trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # A generator of its own: the order depends on the seed and the epoch alone.
        draw = random.Random(f"{self._seed}/{self._epoch}")
        shuffled = list(range(len(self._lengths)))
        draw.shuffle(shuffled)
        whole = len(shuffled) - len(shuffled) % self._batch_size
        batches = []
        for start in range(0, whole, POOL_BATCHES * self._batch_size):
            pool = shuffled[start : min(start + POOL_BATCHES * self._batch_size, whole)]
            pool.sort(key=self._lengths.__getitem__)
            batches += [pool[i : i + self._batch_size] for i in range(0, len(pool), self._batch_size)]
        draw.shuffle(batches)
        for batch in batches:
            yield from batch
        yield from sorted(shuffled[whole:], key=self._lengths.__getitem__)
