"""Earlier updates added to what layers compute, for weights that cannot hold them: quantized, shared or 16-bit.

The interface is that of `nlora.models.merged_updates.MergedUpdates`, which changes weights. This class adds (x·Aᵀ)·Bᵀ
to the output of each layer, where A and B concatenate all updates: one update of rank Σ r_i per layer, however many
tasks there were. Once the single matrix B·A is cheaper, it adds x·(B·A)ᵀ, so a layer never costs more than twice as
much.

Why such weights cannot hold updates:
- If several layers share a weight (Zamba2's blocks), each of them has updates of its own.
- Quantized weights would have to be quantized again, which changes them by more than an update does.
- A bfloat16 weight has 8 significant bits. Rounding W0 + ΔW to them drops every entry of ΔW below about 1/512 of its
  weight: half of the entries of N-LoRA's small updates, and a quarter of their norm (docs/performance.md).
"""

from __future__ import annotations

import sys
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
    """The target modules of a backbone, each with at most one hook, which adds the active updates.

    Works on the modules themselves, so the active updates may change while an adapter is attached. The adapter's own
    update is added on top. Raises ModelError for a module that is not a linear layer.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> before = model(torch.ones(2))
    >>> unmerged = UnmergedUpdates(model, ["0"])
    >>> unmerged.activate([{"0": LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 0.5)}])
    >>> torch.equal(model(torch.ones(2)), before + 1)
    True
    >>> unmerged.deactivate()
    >>> torch.equal(model(torch.ones(2)), before)
    True
    """

    def __init__(self, model: nn.Module, module_names: Sequence[str]) -> None:
        self._modules = {name: linear_layer(model, name) for name in module_names}
        self._hooks: list[RemovableHandle] = []

    def activate(self, states: Sequence[AdapterState]) -> None:
        """Make these updates, and no others, part of what the layers compute.

        Raises AdapterError, before anything is changed, if a state does not fit the modules.
        """
        for state in states:
            check_fits(state, self._modules)
        before = self._hooks
        for hook in before:
            hook.remove()
        self._hooks = []
        for name, module in self._modules.items():
            if updates := [state[name] for state in states if name in state]:
                self._hooks.append(module.register_forward_hook(UpdateHook(updates)))
        # A compiled model does not look whether its layers have got other hooks, and would go on as before.
        if (before or self._hooks) and "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()

    def deactivate(self) -> None:
        """Remove all updates."""
        self.activate([])


class UpdateHook:
    """A forward hook of a linear layer that adds updates to its output, computed in the dtype of its input."""

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

    def update(self) -> Tensor:
        """ΣΔW, (out, in), in float32."""
        product = self._wide[0]
        for matrix in self._wide[1:]:
            product = matrix @ product
        return product

    def matrices(self, like: Tensor) -> list[Tensor]:
        """The matrices that an input is multiplied with in turn, A and B or B·A, in its dtype and on its device."""
        if (self._cast[0].dtype, self._cast[0].device) != (like.dtype, like.device):
            # Cached, because casting at every step would cost more than the product. Not as inference tensors, even
            # during scoring, because the next task's training needs them too.
            with torch.inference_mode(False):
                self._cast = [matrix.to(like.device, like.dtype) for matrix in self._wide]
        return self._cast


def effective_weight(model: nn.Module, name: str) -> Tensor:
    """What a linear layer multiplies its input with: (out, in) in float32, the active updates included.

    The weights must be numbers, neither quantized nor sharded. An adapter in training is not part of it.

    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> UnmergedUpdates(model, ["0"]).activate([{"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1), 0.5)}])
    >>> torch.equal(effective_weight(model, "0"), model[0].weight + 0.5)
    True
    """
    layer = linear_layer(model, name)
    stored = layer.weight
    assert isinstance(stored, Tensor)
    weight = stored.detach().float()
    if not isinstance(layer, nn.Linear):
        weight = weight.mT  # Conv1D stores it as (in, out)
    for hook in layer._forward_hooks.values():
        if isinstance(hook, UpdateHook):
            weight = weight + hook.update().to(weight.device)
    return weight


def unmerged_updates_of(layer: nn.Module) -> UpdateHook | None:
    """The hook that adds updates to this layer's output; None if there is none, or another hook as well."""
    hooks = list(layer._forward_hooks.values())
    alone = len(hooks) == 1 and not layer._forward_pre_hooks and not layer._backward_hooks
    return hooks[0] if alone and isinstance(hooks[0], UpdateHook) else None
