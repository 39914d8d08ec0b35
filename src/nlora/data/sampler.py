"""Batches of examples of similar length, in a seeded random order.

>>> list(LengthGroupedSampler([3, 30, 4, 31], batch_size=2, seed=1))
[0, 2, 1, 3]

A batch is as wide as its longest row, and padding costs as much as tokens. So the shuffled examples are sorted by
length within pools of `POOL_BATCHES` batches and cut into batches, which are then shuffled. The order stays random,
except that examples of similar length are together. A batch here is one of an optimizer step, so the size of the
micro-batches does not change which examples a step trains on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nlora.data.replay import Mix

POOL_BATCHES = 50
"""Number of batches in a pool: larger pools have less padding, but are less random. transformers uses 50, too."""


class LengthGroupedSampler:
    """A sampler: yields the indices of one epoch, in a different order in each epoch.

    lengths: tokens of each example. batch_size: examples per optimizer step, over all processes.
    An epoch's last batch may be smaller; its examples are chosen at random.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass, counted from 0. The Trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # A separate generator, so that the order depends on the seed and the epoch only.
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


class Order(Protocol):
    """The indices of one epoch, over all processes."""

    def set_epoch(self, epoch: int) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


class MixedSampler:
    """A sampler of a data set with a task's own examples, then the kept ones: the indices of one epoch.

    Kept examples are drawn in rounds: each once, in a new random order, before any again. A round goes on in the next
    batch and in the next epoch.

    order: of the task's own examples. lengths: of all examples, by which those of a batch are sorted; None: they are
    not.
    """

    def __init__(self, order: Order, mix: Mix, *, lengths: Sequence[int] | None, seed: int) -> None:
        self._order, self._mix, self._lengths, self._seed = order, mix, lengths, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass, counted from 0. The Trainer calls it."""
        self._epoch = epoch
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self._mix.in_epoch

    def __iter__(self) -> Iterator[int]:
        own, draws = list(self._order), self._draws(self._epoch * self._mix.replayed_in_epoch)
        for start in range(0, len(own), self._mix.new):
            batch = own[start : start + self._mix.new]
            batch += islice(draws, self._mix.beside(len(batch)))
            yield from batch if self._lengths is None else sorted(batch, key=self._lengths.__getitem__)

    def _draws(self, done: int) -> Iterator[int]:
        """The kept examples from a draw on, counted from 0 at the first epoch. It depends on nothing but the seed."""
        first, begin = divmod(done, self._mix.kept)
        for number in count(first):
            order = list(range(self._mix.own, self._mix.own + self._mix.kept))
            random.Random(f"{self._seed}/replay/{number}").shuffle(order)
            yield from order[begin:]
            begin = 0


class ProcessBatches:
    """A batch sampler: the micro-batches of one of several processes.

    The order is cut into the batches of the optimizer steps, which do not depend on the number of processes, and each
    of these into micro-batches, which are dealt out in turn. A process for which none is left gets an empty one, so
    that all processes take the same number of steps.

    sampler: the order. batch_size: examples per optimizer step, over all processes. micro: per micro-batch.

    >>> order = LengthGroupedSampler([3, 30, 4, 31, 5], batch_size=4, seed=1)
    >>> list(order)
    [0, 2, 4, 1, 3]
    >>> for rank in range(2):
    ...     list(ProcessBatches(order, batch_size=4, micro=2, rank=rank, size=2))
    [[0, 2], [3]]
    [[4, 1], []]
    """

    def __init__(self, sampler: Order, *, batch_size: int, micro: int, rank: int, size: int) -> None:
        self.sampler = sampler  # accelerate sets its epoch
        self._batch_size, self._micro, self._rank, self._size = batch_size, micro, rank, size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self._batch_size)
        return whole * self._rounds(self._batch_size) + self._rounds(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for turn in range(self._rounds(len(batch))):
                at = (turn * self._size + self._rank) * self._micro
                yield batch[at : at + self._micro]

    def _rounds(self, examples: int) -> int:
        """How many micro-batches each process gets of a batch."""
        return -(-examples // (self._micro * self._size))
