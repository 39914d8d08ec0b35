"""Counts the padding of a training's batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from nlora.data.task import TokenizedExample


class PaddingCounter:
    """A collator that counts padding, on the CPU, where reading a tensor's values does not wait for a GPU."""

    def __init__(self, collate: Callable[[Sequence[TokenizedExample]], dict[str, Tensor]]) -> None:
        self._collate = collate
        self._positions = self._tokens = 0

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        batch = self._collate(examples)
        positions = batch["input_ids"].numel()
        self._positions += positions
        self._tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else positions
        return batch

    @property
    def padding_share(self) -> float:
        """Share of the positions so far that were padding."""
        return 1 - self._tokens / self._positions if self._positions else 0.0
