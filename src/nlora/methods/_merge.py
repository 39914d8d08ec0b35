"""An update that is merged from those of the stages: once, however many tasks are answered with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlora.models.lora_factors import AdapterState


class LatestMerge:
    """Merges updates, and keeps the result for as long as the same updates are asked for."""

    def __init__(self, merge: Callable[[Sequence[AdapterState]], AdapterState]) -> None:
        self._merge = merge
        self._updates: list[AdapterState] = []
        self._merged: list[AdapterState] = []

    def of(self, updates: Sequence[AdapterState]) -> list[AdapterState]:
        """The merged update; none if no stage trained one."""
        trained = [update for update in updates if update]
        if [id(update) for update in trained] != [id(update) for update in self._updates]:
            self._merged = [self._merge(trained)] if trained else []
            self._updates = trained
        return self._merged

    def forget(self) -> None:
        """Free the memory of the merged update."""
        self._updates, self._merged = [], []
