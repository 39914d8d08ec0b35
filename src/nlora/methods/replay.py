"""Replay: incremental LoRA that also trains on a few stored examples of every earlier task.

Each stage trains on its task's examples and on a seeded sample of every earlier task's training examples. This is plain
experience replay (arXiv 1811.11682), the baseline "Replay" in the tables of O-LoRA and N-LoRA (arXiv 2310.14152,
2410.10179).

Departures: the published numbers come from replay while fine-tuning all parameters. Here each task trains a fresh LoRA
adapter, with the earlier ones merged into the backbone. The released code has no such baseline.

It is short for `method: inclora` with `replay: {memory: 32}`; the section `replay` of a configuration has more ways to
choose, and goes with the other methods.

Pitfalls:
- It needs the earlier tasks' data, which the other methods do not; compare it with that in mind.
- Stages get longer: each earlier task adds `memory` examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.data.replay import stratified
from nlora.methods.base import Method, MethodOptions, Portion

if TYPE_CHECKING:
    from nlora.data.task import Task


class ReplayMethodOptions(MethodOptions):
    """How much of each earlier task is stored."""

    memory: int = Field(
        32,
        ge=0,
        description="Training examples stored of each earlier task, sampled in proportion to its labels; 0: exactly "
        "incremental LoRA.",
    )


class Replay(Method[ReplayMethodOptions]):
    """Adds stored examples of the earlier tasks, each with its own task's prompt."""

    def examples(self, tasks: Sequence[Task], index: int, seed: int) -> list[Portion]:
        portions = super().examples(tasks, index, seed)
        if self.options.memory:
            portions += [(task, stratified(task, self.options.memory, seed)) for task in tasks[:index]]
        return portions
