"""Sequential fine-tuning: all parameters, trained on from task to task, without protection.

SeqFT in the tables of O-LoRA and N-LoRA (arXiv 2310.14152, 2410.10179): the lower reference. Each stage goes on from
the weights of the one before; the released script trains the first task at 1e-3 and the later ones at 1e-4.

Each stage's folder holds the whole model (`model/`, as transformers saves it) in place of an adapter.

Departure from the released code: none known; it is the plain Trainer there too.

Pitfalls:
- Every stage writes the whole model: 3 GB for each task of T5-large.
- Learning rates made for LoRA (1e-3) destroy a model; try 1e-4 or less. With a small enough one it hardly forgets
  (so O-LoRA's author, and MIGU reports 75.7 at 1e-4 where 28.5 is published): the published figure shows a bad
  learning rate as much as a bad method.
- AdamW keeps two numbers per parameter: four times the model's memory. `dtype: bfloat16` loses small steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from nlora.methods.base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class Seqft(Method):
    """Every parameter of the backbone, from stage to stage."""

    trains: ClassVar[Literal["adapter", "weights"]] = "weights"

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.full_model import FullModel

        return FullModel.attach(model)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        if is_last:
            from nlora.models.full_model import FullModel

            FullModel.load(model, folder)
        return {}

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        return []  # nothing is folded: the weights themselves move

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return []
