"""Incremental LoRA: a fresh adapter per task, the earlier ones merged in, and nothing added to the loss.

Model after stage k: W + Σ_{i<=k} s·B_i·A_i, for every task. N-LoRA and O-LoRA (arXiv 2410.10179, 2310.14152) are the
same with a penalty added, so this is the baseline that shows what a penalty is worth.

With `rescale: c`, B_i becomes c·B_i when task i has been trained, before it is scored, saved and merged. That is a
control for N-LoRA: an update of the same norm, whose shape is that of incremental LoRA.

Departure from the released code: earlier updates are merged into the frozen weight. The released code keeps them as
adapters of growing rank, whose inputs get the dropout too.

Pitfalls:
- Nothing keeps the updates of different tasks apart; expect forgetting from the second task on.
- The loss in the log and the scores of `train.early_stopping` are from before an update is rescaled.
- From the second task on, an update is trained on another backbone, so c alone does not set its norm.
- The default threshold of collision rates follows the size of the updates: rescaling all of them alike changes none.
"""

from __future__ import annotations

from pydantic import Field

from nlora.methods.base import Method, MethodOptions


class IncloraOptions(MethodOptions):
    """How large an update is kept."""

    rescale: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="What each task's update is multiplied by once it is trained, before it is scored, saved and "
        "merged: a control for penalties that make updates small. 1: changes nothing.",
    )


class Inclora(Method[IncloraOptions]):
    """Incremental LoRA: what the base class does, with the updates rescaled if wanted."""

    def __init__(self, options: IncloraOptions) -> None:
        super().__init__(options)
        self.rescale = options.rescale
