"""Learning without Forgetting: a new task's texts must not change what the model of before would have answered.

Source: arXiv 1606.09282. Incremental LoRA, and from the second task on, added to the cross-entropy of an answer token:

    weight · T² · KL( softmax(z_before / T) ‖ softmax(z / T) )

z: the logits that predict the token; z_before: those of the model as it was before this stage, which is the backbone
with the adapter switched off. T: the temperature.

Departures: a language model has no head per task, which the paper has: the old model's answers are asked for the
new task's own prompts, at the positions of the answer. The released code has no such baseline; the published numbers
of "LwF" (arXiv 2310.14152, 2410.10179) fine-tune all parameters.

Pitfalls:
- It holds the model back exactly where the new task is to change it, so a large weight costs the new task.
- Every step costs a forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class LwfOptions(MethodOptions):
    """How strongly the old answers are held, and how soft they are made."""

    weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the distillation beside the cross-entropy; 0: exactly incremental LoRA.",
    )
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="T: both distributions are softened by it (paper: 2)."
    )


class Lwf(Method):
    """Distillation from the model before the stage; nothing at the first one."""

    Options: ClassVar[type[MethodOptions]] = LwfOptions
    _is_first = True

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self._is_first = not earlier

    def extra_loss(self, logits: Tensor, targets: Tensor, before: Callable[[], Tensor]) -> Tensor | None:
        options = self.options
        assert isinstance(options, LwfOptions)
        if self._is_first or options.weight == 0:
            return None
        from nlora.kernels.distillation import distillation

        return options.weight * distillation(logits, before(), targets, options.temperature)
