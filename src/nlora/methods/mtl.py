"""Multi-task learning: one adapter trained on all tasks at once: the other upper reference.

Model: W + s·B·A, trained on the examples of all tasks together, each with its own task's prompt. MTL in the tables of
O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179).

Nothing is learned one after another, so only the last row of the accuracy matrix is there: the stages before the last
are passed over, and backward transfer and forgetting have no value.

Departure from the released code: it has no such baseline; its published numbers come from other repositories.

Pitfall: the rank is shared by all tasks. With many of them a larger lora.r is the fairer reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nlora.methods.base import Method, Portion

if TYPE_CHECKING:
    from nlora.data.task import Task


class Mtl(Method):
    """All tasks' examples at the last stage, none before."""

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        return [(task, task.train) for task in tasks] if index == len(tasks) - 1 else []
