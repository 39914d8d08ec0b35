"""Work that processes share: dealt out in turn, and put back in order.

>>> share = Share(number=1, rank=0)  # of one process
>>> share.together([len(word) for word in share.of(["a", "bcd"])])
[1, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from nlora.models import processes
from nlora.models.inspection import is_sharded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `number` processes does. rank: from 0."""

    number: int
    rank: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Its items. Sorted ones are dealt out so that all processes have some of every size."""
        return items[self.rank :: self.number]

    def together(self, mine: Sequence[T]) -> list[T]:
        """The results of all processes, in the order of the items. mine: one for each of this process's items."""
        if self.number == 1:
            return list(mine)
        every = processes.gather(mine)
        return [every[i % self.number][i // self.number] for i in range(sum(map(len, every)))]


def share_of(model: nn.Module) -> Share:
    """This process's share of passes through a model. Of a sharded model, every pass takes all processes."""
    return Share(1, 0) if is_sharded(model) else Share(processes.size(), processes.rank())
