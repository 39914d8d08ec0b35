"""Sequential LoRA: one adapter for all tasks, trained on from task to task, without protection.

Model after stage k: W + s·B_k·A_k, where (A_k, B_k) starts from (A_{k-1}, B_{k-1}). The lower baseline of
O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179; SeqLoRA in their tables).

The optimizer's state starts afresh with every task, as in the released scripts, which run one process per
task.

Pitfall: the rank is shared by all tasks; with a long sequence the last task overwrites the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nlora.methods.base import Method

if TYPE_CHECKING:
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class Seqlora(Method):
    """Sequential LoRA: a stage begins with the factors that the one before ended with."""

    continues_adapter: ClassVar[bool] = True

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        return []

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return updates[-1:]

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        if earlier:
            adapter.load_state(earlier[-1])
