"""Earlier tasks' updates kept beside frozen weights that cannot take them in: quantized, shared, or of 16 bits.

    beside = UnmergedUpdates(model, [shape.name for shape in target_modules(model, lora)])
    beside.fold([state_1, state_2])        # the model now computes with W0 + ΔW_1 + ΔW_2
    beside.fold([state_1])                 # ... W0 + ΔW_1, whatever was there before
    beside.restore()                       # W0: nothing is left on the model

The interface of `nlora.models.merged_updates.MergedUpdates`. Where that changes weights, this adds (x·Aᵀ)·Bᵀ to what
each layer computes, with A and B of all updates concatenated: one update of rank Σ r_i per layer, however many tasks
there were; once the one matrix B·A is cheaper, x·(B·A)ᵀ. So a layer never costs more than twice as much.

A weight that several layers share (Zamba2's blocks) cannot take in the updates that each of them has of its own.
Quantized weights would have to be quantized again, which changes them by more than an update is large. A bfloat16
weight has 8 significant bits, and rounding W0 + ΔW to them leaves every entry of ΔW out that is less than about 1/512
of its weight: half of them, for N-LoRA's small updates, and a quarter of the update's norm (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from nlora.models.lora_factors import AdapterState, LoraFactors, stack
from nlora.models.merged_updates import check_fits
from nlora.models.target_modules import linear_layer


class UnmergedUpdates:
    """The target modules of a backbone, each with at most one hook that adds the updates so far.

    Works on the modules themselves, so it may change while an adapter is attached to them; the adapter's own
    update is then added on top. Raises ModelError for a module that is no linear layer.
    """

    def __init__(self, model: nn.Module, module_names: Sequence[str]) -> None:
        self._modules = {name: linear_layer(model, name) for name in module_names}
        self._hooks: list[RemovableHandle] = []

    def fold(self, states: Sequence[AdapterState]) -> None:
        """Add all of these updates to what the layers compute; with none, leave the layers alone.

        Raises AdapterError, before anything is changed, where a state does not fit the modules.
        """
        for state in states:
            check_fits(state, self._modules)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name, module in self._modules.items():
            if updates := [state[name] for state in states if name in state]:
                self._hooks.append(module.register_forward_hook(Added(updates)))

    def restore(self) -> None:
        """Take every update off again."""
        self.fold([])


class Added:
    """A forward hook of a linear layer: its output plus that of earlier updates, in the number format of its input."""

    def __init__(self, updates: list[LoraFactors]) -> None:
        with torch.no_grad():
            joint = stack(updates)  # (Σr, in), (out, Σr), float32 and already scaled
            out_features, in_features = joint.shape
            low_rank = joint.A.shape[0] * (in_features + out_features) < in_features * out_features
            self._wide = [joint.A, joint.B] if low_rank else [joint.B @ joint.A]
        self._cast = self._wide

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = inputs[0]  # (..., in)
        for matrix in self.matrices(added):
            added = F.linear(added, matrix)
        return output + added.to(output.dtype)

    def matrices(self, like: Tensor) -> list[Tensor]:
        """What an input is multiplied with, one after the other: A and B, or B·A; as the input wants them."""
        if (self._cast[0].dtype, self._cast[0].device) != (like.dtype, like.device):
            # Kept: casting at every step would cost more than the product. Not as inference tensors, even while the
            # model is scored: the next task's training needs them too.
            with torch.inference_mode(False):
                self._cast = [matrix.to(like.device, like.dtype) for matrix in self._wide]
        return self._cast


def added_to(layer: nn.Module) -> Added | None:
    """What is added to this layer's output; None where that is nothing, or somebody else listens to the layer, too."""
    hooks = list(layer._forward_hooks.values())
    alone = len(hooks) == 1 and not layer._forward_pre_hooks and not layer._backward_hooks
    return hooks[0] if alone and isinstance(hooks[0], Added) else None
