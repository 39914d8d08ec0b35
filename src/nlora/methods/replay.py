"""Replay: incremental LoRA that trains on a few kept examples of every earlier task beside its own.

Each stage trains on its task's examples and, for every task learned before, on a seeded sample of that task's training
examples. A plain experience replay (arXiv 1811.11682), the baseline "Replay" in the tables of O-LoRA and N-LoRA
(arXiv 2310.14152, 2410.10179).

Departures from the released code, which has no such baseline: the published numbers replay while fine-tuning all
parameters; here the update is a fresh LoRA adapter per task, the earlier ones folded in.

Pitfalls:
- It needs the earlier tasks' data, which the other methods do without: compare it with that in mind.
- A stage grows with the number of tasks learned: by `memory` examples for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from nlora.data.splits import sample
from nlora.methods.base import Method, MethodOptions, Portion

if TYPE_CHECKING:
    from nlora.data.task import Task


class ReplayOptions(MethodOptions):
    """How much of each earlier task is kept."""

    memory: int = Field(
        32,
        ge=0,
        description="Training examples kept of each earlier task, a sample stratified by label; 0: exactly "
        "incremental LoRA.",
    )


class Replay(Method):
    """Earlier tasks' kept examples, each with its own task's prompt."""

    Options: ClassVar[type[MethodOptions]] = ReplayOptions

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        assert isinstance(self.options, ReplayOptions)
        portions = super().examples(tasks, index, seed)
        if self.options.memory:
            for task in tasks[:index]:
                digest = hashlib.sha256(f"{seed}/{task.name}/replay".encode()).digest()
                kept = sample(task.train, self.options.memory, int.from_bytes(digest[:8], "big"))
                portions.append((task, kept))
        return portions
