"""One adapter per task, the task id given: an upper reference that cannot forget.

Model for task i: W + s·B_i·A_i, trained from W on task i alone. PerTaskFT in the tables of O-LoRA and N-LoRA
(arXiv 2310.14152, 2410.10179), there with a whole fine-tuned model per task; here with a LoRA adapter per task, so
that it differs from incremental LoRA in nothing but the knowledge of the task.

Departure from the released code: it has no such baseline; its published numbers come from other repositories.

Pitfall: it answers another question than the rest. Whoever serves it must know each text's task, and no task learns
from another: later tasks may well do worse than in a sequence. A task not learned yet is answered by the bare backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nlora.methods.base import Method

if TYPE_CHECKING:
    from nlora.models.lora_adapter import AdapterState


class Pertask(Method):
    """Each stage starts from the bare backbone, and each task is answered with its own update."""

    needs_task_id: ClassVar[bool] = True

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        return []

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return updates[index : index + 1]
