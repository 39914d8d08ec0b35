"""Multi-task learning: one adapter trained on all tasks at once, an upper bound.

Model: W + s·B·A, trained on the examples of all tasks together, each with its own task's prompt. MTL in the tables of
O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179).

All training happens at the last stage. The earlier stages are skipped, so only the last row of the accuracy matrix
exists, and backward transfer and forgetting have no value.

Departure: the released code has no such baseline; its published numbers come from other repositories.

Pitfall: all tasks share the rank. With many tasks, a larger lora.r is the fairer reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nlora.methods.base import Method, Portion

if TYPE_CHECKING:
    from nlora.config.schema import LoraOptions
    from nlora.data.task import Task
    from nlora.models.lora_adapter import AdapterState


class Mtl(Method):
    """All tasks' examples at the last stage, and none before."""

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        return [(task, task.train) for task in tasks] if index == len(tasks) - 1 else []

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "mtl trains on the examples of all tasks, which an adapter does not have"

    # Only a run that was extended has an earlier update: of fewer tasks, trained before the last one was appended.

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        return []

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return updates[-1:]
