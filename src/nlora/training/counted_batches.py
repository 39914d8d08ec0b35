"""Batches that say how many positions they have, and how many of these are tokens rather than padding.

Counted on the CPU, where reading a tensor's values does not wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Examples = TypeVar("Examples")

SIZE = "size"
"""Key of a batch: its positions and its tokens."""


def counted(collate: Callable[[Examples], dict[str, Any]]) -> Callable[[Examples], dict[str, Any]]:
    """A collator that adds the size of each batch."""

    def with_size(examples: Examples) -> dict[str, Any]:
        batch = collate(examples)
        positions = batch["input_ids"].numel()
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else positions
        return {**batch, SIZE: (positions, tokens)}

    return with_size
