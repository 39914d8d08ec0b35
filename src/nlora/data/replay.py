"""Which examples of a task are kept for the later ones, and how these mix them into their batches (`replay`).

>>> mix = Mix(own=10, kept=3, batch_size=8, replayed=4)
>>> mix.in_epoch, mix.replayed_in_epoch
(20, 10)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlora.data.splits import draw_seed, sample

if TYPE_CHECKING:
    from nlora.data.task import Example, Task

_DECIMALS = 6
"""Of a loss. What differs less is taken as equal, since it depends on how examples were batched."""


def stratified(task: Task, n: int, seed: int) -> tuple[Example, ...]:
    """min(n, all) of the task's training examples, in proportion to its labels. seed: the run's."""
    return sample(task.train, n, draw_seed(seed, task.name, "replay"))


def stratified_within(task: Task, tokens: Sequence[int], budget: int, seed: int) -> tuple[Example, ...]:
    """A sample as large as its tokens fit into the budget, or a little smaller. tokens: of each training example, (n,).

    Begins with as many as would fit if all were of mean length, and takes fewer until it fits. It is never empty where
    an example fits: longer ones than the budget are not drawn.
    """
    length = dict(zip(task.train, tokens, strict=True))
    fitting = [example for example in task.train if length[example] <= budget]
    if not fitting:
        return ()
    n = budget * len(fitting) // sum(map(length.__getitem__, fitting))
    longest = max(map(length.__getitem__, fitting))
    while True:
        n = max(n, 1)
        some = sample(fitting, n, draw_seed(seed, task.name, "replay"))
        excess = sum(map(length.__getitem__, some)) - budget
        if excess <= 0:
            return some
        n -= -(-excess // longest)


def hardest(losses: Sequence[float], n: int) -> list[int]:
    """The indices of the min(n, all) examples of highest loss, ascending; of equal ones, the first."""
    return sorted(_by_loss(losses)[:n])


def hardest_within(losses: Sequence[float], tokens: Sequence[int], budget: int) -> list[int]:
    """Indices of examples, ascending: in the order of their losses, each that still fits into the budget of tokens."""
    kept = []
    for i in _by_loss(losses):
        if tokens[i] <= budget:
            kept.append(i)
            budget -= tokens[i]
    return sorted(kept)


def _by_loss(losses: Sequence[float]) -> list[int]:
    return sorted(range(len(losses)), key=lambda i: (-round(losses[i], _DECIMALS), i))


@dataclass(frozen=True, slots=True)
class Mix:
    """An epoch whose batches have a share of kept examples.

    own, kept: how many examples there are of the task and of earlier ones. batch_size: of an optimizer step. replayed:
    how many of a whole batch are kept ones; at least one, and not all.
    """

    own: int
    kept: int
    batch_size: int
    replayed: int

    @classmethod
    def of(cls, own: int, kept: int, batch_size: int, share: float) -> Mix | None:
        """With that share, rounded to whole examples of a batch; None if that is no example, or all of them."""
        replayed = int(share * batch_size + 0.5)
        return cls(own, kept, batch_size, replayed) if 0 < replayed < batch_size else None

    @property
    def new(self) -> int:
        """How many examples of a whole batch are the task's own."""
        return self.batch_size - self.replayed

    def beside(self, own: int) -> int:
        """How many kept examples a batch with this many own ones has; the last of an epoch may be smaller."""
        return (2 * own * self.replayed + self.new) // (2 * self.new)

    @property
    def replayed_in_epoch(self) -> int:
        """Draws of kept examples in an epoch."""
        whole, rest = divmod(self.own, self.new)
        return whole * self.replayed + self.beside(rest)

    @property
    def in_epoch(self) -> int:
        """Examples of an epoch: each of the task's own once, and the draws."""
        return self.own + self.replayed_in_epoch
