"""Learning without Forgetting: on the new task's texts, stay close to what the model predicted before.

Source: arXiv 1606.09282. Incremental LoRA. From the second task on, this is added to the cross-entropy of an answer
token: weight · T² · KL(softmax(z_before / T) ‖ softmax(z / T)).

z: the logits that predict the token. z_before: the same of the model as it was before this stage, which is the backbone
with the adapter switched off. T: the temperature.

Departures: the paper has a head per task, which a language model does not have. Here the old model predicts the answer
tokens of the new task's own prompts. The released code has no such baseline; the published numbers of "LwF" (arXiv
2310.14152, 2410.10179) fine-tune all parameters.

Pitfalls:
- It resists exactly the changes that the new task needs, so a large weight hurts the new task.
- Every step takes one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class LwfOptions(MethodOptions):
    """How strongly the old predictions are kept, and how far they are softened."""

    weight: float = Field(
        0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the distillation relative to the cross-entropy; 0: exactly incremental LoRA. The "
        "default was the best of six when tuned on three tasks.",
    )
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="T, which softens both distributions (paper: 2)."
    )


class Lwf(Method[LwfOptions]):
    """Distillation from the model as it was before the stage; none at the first stage."""

    _is_first = True

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self._is_first = not earlier

    def extra_loss(self, logits: Tensor, targets: Tensor, before: Callable[[], Tensor]) -> Tensor | None:
        options = self.options
        if self._is_first or options.weight == 0:
            return None
        from nlora.kernels.distillation import distillation

        return options.weight * distillation(logits, before(), targets, options.temperature)
