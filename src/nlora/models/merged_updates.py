"""Earlier updates merged into the frozen weights: W = round(W0 + Σ_i s_i·B_i·A_i), rounded once.

The sum is always computed from the original weights, in full precision. Merging one task after another would round
every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nlora.errors import AdapterError, ModelError
from nlora.models.lora_factors import AdapterState, LoraFactors, stack
from nlora.models.shared_tensors import once_per_machine
from nlora.models.target_modules import in_and_out, is_quantized, linear_layer, shares_weight
from nlora.models.text_layers import is_linear


class MergedUpdates:
    """The target modules of a backbone, with a copy of their original weights on the CPU in their own dtype.

    The processes of a machine that share a run share that copy; all of them have to activate the same updates.

    Works on the modules themselves, so the active updates may change while an adapter is attached. Raises ModelError
    for a module that is not a linear layer, is quantized, or shares its weight with another; for these, use
    `nlora.models.unmerged_updates`.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> original = model[0].weight.clone()
    >>> update = {"0": LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    >>> merged = MergedUpdates(model, ["0"])
    >>> merged.activate([update, update])
    >>> torch.allclose(model[0].weight, original + 2)
    True
    >>> merged.deactivate()
    >>> torch.equal(model[0].weight, original)
    True
    """

    def __init__(self, model: nn.Module, module_names: Sequence[str]) -> None:
        self._modules = {name: _plain_linear(model, name) for name in module_names}
        self._originals: dict[str, Tensor] = {}  # filled when first needed: a first task needs no copy

    def activate(self, states: Sequence[AdapterState]) -> None:
        """Set the weights to the originals plus these updates.

        Raises AdapterError, before any weight is changed, if a state does not fit the modules.
        """
        for state in states:
            check_fits(state, self._modules)
        if states and not self._originals:
            self._originals = once_per_machine({n: _weight(m) for n, m in self._modules.items()})
        for name, original in self._originals.items():
            updates = [state[name] for state in states if name in state]
            module = self._modules[name]
            weight = _weight(module)
            weight.copy_(
                _sum(original.to(weight.device), updates, transposed=not isinstance(module, nn.Linear))
            )

    def deactivate(self) -> None:
        """Restore the original weights, bit for bit."""
        self.activate([])


def check_fits(state: AdapterState, modules: Mapping[str, nn.Module]) -> None:
    """Raises AdapterError with the module's name if a state updates other modules than these, or other shapes."""
    for name, f in state.items():
        if name not in modules:
            raise AdapterError(f"an adapter updates {name}, which the model does not have or does not update")
        if not is_linear(modules[name]):
            kind = type(modules[name]).__name__
            raise AdapterError(f"an adapter updates {name}, which is not a linear layer here, but a {kind}")
        in_features, out_features = in_and_out(modules[name])
        if f.shape != (out_features, in_features):
            raise AdapterError(
                f"an adapter's update of {name} is {f.shape[0]}x{f.shape[1]}, "
                f"but the layer is {out_features}x{in_features} (out x in)"
            )


def _sum(original: Tensor, updates: list[LoraFactors], transposed: bool) -> Tensor:
    """W0 + Σ s_i·B_i·A_i in at least float32, in the orientation of `original`; the caller rounds it."""
    if not updates:
        return original
    wide = torch.promote_types(original.dtype, torch.float32)
    joint = stack(updates)
    A, B = joint.A.to(original.device, wide), joint.B.to(original.device, wide)  # (Σr, in), (out, Σr)
    with torch.autocast(original.device.type, enabled=False):
        if transposed:
            return torch.addmm(original.to(wide), A.t(), B.t())  # (in, out)
        return torch.addmm(original.to(wide), B, A)  # (out, in)


def _plain_linear(model: nn.Module, name: str) -> nn.Module:
    module = linear_layer(model, name)
    if shares_weight(model, module):
        raise ModelError(
            f"{name} shares its weight with another layer, which has updates of its own; updates cannot be merged "
            "into such weights; keep them unmerged (nlora.models.unmerged_updates)"
        )
    if is_quantized(module):
        raise ModelError(
            f"{name} is quantized ({type(module).__name__}, {_weight(module).dtype}); updates cannot be merged "
            "into quantized weights; keep them unmerged, or load the model in float32 or bfloat16"
        )
    return module


def _weight(module: nn.Module) -> Tensor:
    """The weight itself, detached from autograd."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
