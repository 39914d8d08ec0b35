"""OSF: each task trains the adapted layers only in the singular directions that mattered least so far.

Source: arXiv 2504.07097, using PEFT's own tuner. Before each task, every adapted layer's weight is decomposed again:
W = U S Vᵀ. The leading triples are frozen and the rest is trained in full, with gradients projected off the frozen
directions, so that what earlier tasks wrote there is mostly preserved.

    preserved at stage k of T:  k / (T + 1) of the directions, or `preserved` throughout

Each stage's folder holds the layers' weights (`weights.safetensors`) instead of an adapter.

Departures: the paper chooses each layer's preserved rank by how much the layer changes its input. PEFT's tuner uses one
share for all layers, which grows with the tasks here, as PEFT's documentation advises. `lora.targets` says which layers
train; lora.r, alpha and dropout have no effect. The released code of N-LoRA and O-LoRA has no such baseline.

Pitfalls:
- Only gradients are projected, as in the paper's released code and in PEFT. AdamW then divides each entry by a mean of
  its own, so steps have a part along the frozen directions again. For weights whose leading directions stay exactly as
  they are, see oplora.
- It trains far more parameters than LoRA (halfway through a sequence, half of each layer's directions), and every step
  runs each layer twice. It is the slowest method, and it needs the learning rate of full fine-tuning (about 5e-5), not
  that of LoRA.
- `dtype: bfloat16` rounds most small steps away, as the directions themselves train. Set `dtype: float32`, or
  a larger rate: for SmolLM2-135M 3e-4 was best of four in bfloat16 (docs/results.md).
- Weights whose singular values are close to each other decompose differently on different machines.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from nlora.errors import Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState
    from nlora.models.target_modules import ModuleShape
    from nlora.models.trainable import Trainable


def _directions(module: ModuleShape) -> int:
    return min(module.in_features, module.out_features)


class OsfOptions(MethodOptions):
    """How much of each layer is frozen."""

    preserved: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each layer's singular directions that is frozen; null: k / (T + 1) at stage k of T.",
    )


class Osf(Method[OsfOptions]):
    """Trains the weights themselves, off their leading directions."""

    trains = "weights"
    needs_float_weights = True
    _tasks = 1
    _narrowest: ModuleShape | None = None

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        self._narrowest = min(modules, key=_directions, default=None)
        return [] if self.options.preserved is None else self._nothing_preserved(self.options.preserved)

    def check_sequence(self, tasks: int) -> list[Problem]:
        self._tasks = tasks
        return [] if self.options.preserved is not None else self._nothing_preserved(1 / (tasks + 1))

    def _nothing_preserved(self, share: float) -> list[Problem]:
        """The complaint that a share is less than one direction of a layer, which PEFT refuses."""
        narrow = self._narrowest
        if narrow is None or int(share * _directions(narrow)) >= 1:
            return []
        n = _directions(narrow)
        least = math.ceil(1e4 / n) / 1e4  # rounded up, or it would be refused again
        what = f"{share:.3g} of the {n} directions of {narrow.name} is less than one; set {least:g} or more"
        return [Problem.at(("method", "preserved"), f"{what}, or leave the layer out of lora.targets")]

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.osf_layers import OsfLayers

        share = self.options.preserved or stage / (self._tasks + 1)
        return OsfLayers.attach(model, lora, preserved=share)

    def reload(self, model: nn.Module, folder: Path, *, is_last: bool) -> AdapterState:
        if is_last:
            from nlora.models.osf_layers import OsfLayers

            OsfLayers.load(model, folder)
        return {}
