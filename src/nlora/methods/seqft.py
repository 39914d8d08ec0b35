"""Sequential fine-tuning: all parameters are trained from task to task, without protection.

SeqFT in the tables of O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179), a lower bound. Each stage continues from the
previous stage's weights. The released script trains the first task at 1e-3 and the later ones at 1e-4.

Each stage's folder holds the whole model (`model/`, as transformers saves it) instead of an adapter.

Departure from the released code: none known; it uses the plain Trainer too.

Pitfalls:
- Every stage writes the whole model: 3 GB per task for T5-large.
- Learning rates meant for LoRA (1e-3) destroy a model; try 1e-4 or less. With a small enough learning rate it hardly
  forgets: O-LoRA's author says so, and MIGU reports 75.7 at 1e-4 compared with the published 28.5. The published figure
  shows a bad learning rate as much as a bad method.
- `dtype: bfloat16` rounds most small steps away, as the weights themselves train. Set `dtype: float32`, or a larger
  rate: for SmolLM2-135M 1e-4 was best of four in float32, and 3e-4 in bfloat16 (docs/results.md).
- AdamW stores two numbers per parameter, which makes four times the model's memory with weights and gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlora.methods.base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class Seqft(Method):
    """Trains every parameter of the backbone, from stage to stage."""

    trains = "weights"
    needs_float_weights = True

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.full_model import FullModel

        return FullModel.attach(model)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        if is_last:
            from nlora.models.full_model import FullModel

            FullModel.load(model, folder)
        return {}
