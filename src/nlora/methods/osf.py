"""OSF: each task trains the adapted layers only in the singular directions that mattered least so far.

Source: arXiv 2504.07097, on PEFT's own tuner. A layer's weight is decomposed anew before each task: W = U S Vᵀ. Its
leading directions are frozen, the rest is trained in full, with gradients projected off the frozen ones, so that what
the earlier tasks wrote into the leading directions stays.

    preserved at stage k of T:  k / (T + 1) of the directions, or `preserved` throughout

Each stage's folder holds the layers' weights (`weights.safetensors`) in place of an adapter.

Departures: the paper chooses the preserved rank of each layer by how much the layer changes its input; PEFT's tuner
takes one share for all, here growing with the tasks as its documentation advises. Which layers train is `lora.targets`;
lora.r, alpha and dropout do not matter. The released code of N-LoRA and O-LoRA has no such baseline.

Pitfalls:
- It trains far more parameters than LoRA (half of each layer's directions in the middle of a sequence), and every step
  runs each layer twice: it is the slowest of the methods, and the learning rate has to be that of full fine-tuning
  (5e-5 or so), not LoRA's.
- Weights whose singular values are near each other decompose differently on different machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from nlora.errors import Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.trainable import Trainable


class OsfOptions(MethodOptions):
    """How much of each layer is frozen."""

    preserved: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each layer's singular directions that is frozen; null: k / (T + 1) at stage k of T.",
    )


class Osf(Method):
    """Weights that move off the directions of before."""

    Options: ClassVar[type[MethodOptions]] = OsfOptions
    trains: ClassVar[Literal["adapter", "weights"]] = "weights"
    _tasks = 1

    def check_sequence(self, tasks: int) -> list[Problem]:
        self._tasks = tasks
        return []

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.osf_layers import OsfLayers

        assert isinstance(self.options, OsfOptions)
        share = self.options.preserved or stage / (self._tasks + 1)
        return OsfLayers.attach(model, lora, preserved=share)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        if is_last:
            from nlora.models.osf_layers import OsfLayers

            OsfLayers.load(model, folder)
        return {}

    def active_in_training(self, updates: Sequence[AdapterState]) -> Sequence[AdapterState]:
        return []  # nothing is folded: the weights themselves move

    def active_for(self, updates: Sequence[AdapterState], index: int) -> Sequence[AdapterState]:
        return []
